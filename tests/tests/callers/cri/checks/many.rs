//! Many pods at once.

use std::collections::BTreeSet;

use super::network::SERVER;
use crate::checks::network::await_page;
use crate::cri::pod::{Case, Container, Pod};

/// `CLOISTER_TEST_PODS` in the environment, or this many.
const PODS: usize = 20;

/// So many pods, which are all made at once, each with a server.
pub(super) fn start(case: &Case) -> Vec<(Pod, Container)> {
    let asked = std::env::var("CLOISTER_TEST_PODS").ok();
    let count = asked.map_or(PODS, |text| text.parse().expect("a number"));
    let names: Vec<_> = (0..count).map(|number| format!("pod-{number}")).collect();
    std::thread::scope(|scope| {
        let pods: Vec<_> = names
            .iter()
            .map(|name| {
                scope.spawn(move || {
                    let pod = case.pod(name);
                    let web = pod.start("web", SERVER);
                    (pod, web)
                })
            })
            .collect();
        let made = pods.into_iter().map(|pod| pod.join().expect("a pod"));
        made.collect()
    })
}

pub(crate) fn at_once(case: &Case) {
    let pods = start(case);
    let count = pods.len();
    let found = pods.iter().map(|(pod, web)| (pod.address(), web.boot_id()));
    let found: Vec<_> = found.collect();
    let addresses: BTreeSet<_> = found.iter().map(|(address, _)| address).collect();
    let kernels: BTreeSet<_> = found.iter().map(|(_, boot)| boot).collect();
    assert_eq!(
        (addresses.len(), kernels.len()),
        (count, count),
        "{found:?}"
    );
    for address in addresses {
        await_page(&format!("{address}:80"));
    }
}
