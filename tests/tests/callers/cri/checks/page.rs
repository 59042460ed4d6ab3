//! `docs/kubernetes.md`, as it is printed, as far as a node goes: there is no cluster here.

use std::fs;
use std::path::Path;

use crate::cri::daemon::{CONFIG, DROP_IN, Node};
use crate::cri::pod::Case;
use crate::harness::Page;

use super::figures::{MIB, assert_within, size_of};

/// What CRI-O is configured with for the shim, and for the command line: `cri/crio.rs` does so.
pub(crate) const CRI_O: &str = "[crio.runtime.runtimes.cloister]\n\
    runtime_path = \"/usr/local/bin/containerd-shim-cloister-v2\"\n\
    runtime_type = \"vm\"\n\
    runtime_root = \"/run/cloister-crio\"\n\
    privileged_without_host_devices = true\n";
pub(crate) const CRI_O_OCI: &str = "[crio.runtime]\n\
    drop_infra_ctr = false\n\n\
    [crio.runtime.runtimes.cloister]\n\
    runtime_path = \"/usr/local/bin/cloister\"\n\
    runtime_type = \"oci\"\n";

/// Where the repository has what is put on nodes.
pub(super) fn deploy_directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"))
}

/// A file of it.
pub(super) fn deployed(name: &str) -> String {
    let path = deploy_directory().join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Puts what the page says about a node into its configuration, which has nothing of Cloister's.
fn configure(node: Node, page: &mut Page) {
    let runc = page.take("toml");
    let mut config = node.config_without_cloister();
    if node == Node::V2 {
        let imports = "imports = [\"/etc/containerd/conf.d/*.toml\"]";
        page.assert_says(&format!(
            "have `{imports}` in `/etc/containerd/config.toml`"
        ));
        page.assert_says("put `deploy/containerd/version-3.toml` into `/etc/containerd/conf.d/`");
        config = format!("{imports}\n{config}");
        fs::create_dir_all(Path::new(DROP_IN).parent().expect("a directory")).expect("conf.d");
        fs::write(DROP_IN, deployed("containerd/version-3.toml")).expect("the drop-in");
    } else {
        page.assert_says("append the section in `deploy/containerd/version-2.toml` to `/etc/containerd/config.toml`");
        let section = deployed("containerd/version-2.toml");
        let (_, section) = section.split_once("version = 2\n").expect("a version");
        config = [&config, section, &runc].concat();
    }
    page.pass("", "kubectl apply -f deploy/runtime-class.yaml\n");
    page.pass("toml", CRI_O);
    page.pass("toml", CRI_O_OCI);
    let class = deployed("runtime-class.yaml");
    assert!(class.contains("\nhandler: cloister\n"), "{class}");
    let mut large = page.take("toml");
    if node == Node::V2 {
        page.assert_says("`io.containerd.cri.v1.runtime` in place of `io.containerd.grpc.v1.cri`");
        large = large.replace("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime");
    }
    assert!(
        large.contains("ConfigPath = \"/etc/cloister/large.toml\""),
        "{large}"
    );
    fs::write("/etc/cloister/large.toml", "memory_mib = 256\n").expect("the configuration");
    fs::write(CONFIG, config + &large).expect("config.toml");
}

pub(crate) fn kubernetes(case: &Case) {
    let mut page = Page::open("kubernetes.md");
    case.restart_daemon(|| configure(case.node, &mut page));
    page.assert_followed();
    for (handler, least, most) in [("cloister", 72, 128), ("cloister-large", 200, 256)] {
        let pod = case.run_with(handler, case.config(handler));
        let pod = pod.unwrap_or_else(|refusal| panic!("{handler}: {refusal}"));
        let (memory, _) = size_of(&pod);
        assert_within("MemTotal", memory, least * MIB, most * MIB);
    }
    // runc is there beside it, and the default.
    let pod = case
        .run_with("", case.config("usual"))
        .unwrap_or_else(|refusal| panic!("{refusal}"));
    let here = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("this kernel");
    assert_eq!(pod.start("looker", "exec sleep 1000").boot_id(), here);
}
