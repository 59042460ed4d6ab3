use super::*;
use crate::sys;

/// A veth pair in a namespace, one end with addresses, and another namespace; `None` where they
/// cannot be made.
fn namespaces() -> Option<(Namespace, Namespace)> {
    let own = || {
        sys::new_namespaces(libc::CLONE_NEWNET).ok()?;
        Namespace::open(Path::new("/proc/thread-self/ns/net")).ok()
    };
    let other = own()?;
    Some((own()?, other))
}

fn ip(namespace: &Namespace, arguments: &str) -> String {
    let out = namespace.within(|| {
        let mut ip = std::process::Command::new("ip");
        ip.args(arguments.split(' ')).output().unwrap()
    });
    let out = out.unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn devices(names: &[(&str, &str)]) -> BTreeMap<String, String> {
    let names = names
        .iter()
        .map(|(old, new)| ((*old).to_owned(), (*new).to_owned()));
    names.collect()
}

/// On a thread of its own, which stays in the first namespace.
fn test(work: impl FnOnce(&Namespace, &Namespace) + Send + 'static) {
    let tested = std::thread::spawn(|| {
        if let Some((here, there)) = namespaces() {
            ip(&here, "link add a0 type veth peer name b0");
            ip(&here, "addr add 10.9.0.2/24 brd + dev a0");
            ip(&here, "addr add fd09::2/64 dev a0 nodad");
            ip(&here, "link set a0 mtu 1400 up");
            work(&here, &there);
        }
    });
    tested.join().unwrap();
}

#[test]
fn a_device_is_moved_with_its_addresses_and_under_another_name() {
    test(|here, there| {
        move_in(there, &devices(&[("a0", "eth7")])).unwrap();
        let link = ip(there, "-o link show eth7");
        assert!(link.contains("mtu 1400") && link.contains(",UP"), "{link}");
        let addresses = ip(there, "-o addr show eth7");
        for kept in ["10.9.0.2/24 brd 10.9.0.255", "fd09::2/64"] {
            assert!(addresses.contains(kept), "{addresses}");
        }
        assert!(!ip(here, "-o link").contains("a0"));
    });
}

#[test]
fn a_template_gives_a_name_that_is_free() {
    test(|_, there| {
        ip(there, "link add eth0 type veth peer name other");
        move_in(there, &devices(&[("a0", "eth%d")])).unwrap();
        assert!(ip(there, "-o addr show eth1").contains("10.9.0.2/24"));
    });
}

#[test]
fn what_cannot_be_moved_is_named_and_nothing_is_moved() {
    test(|here, there| {
        ip(there, "link add eth0 type veth peer name other");
        let error = move_in(there, &devices(&[("a0", "eth7"), ("b0", "eth0")]));
        assert!(
            matches!(error, Err(NetworkError::NameTaken { .. })),
            "{error:?}"
        );
        let error = move_in(there, &devices(&[("a0", "eth7"), ("x0", "x0")]));
        assert!(
            matches!(error, Err(NetworkError::NoDevice { .. })),
            "{error:?}"
        );
        let link = ip(here, "-o addr show a0");
        assert!(link.contains("10.9.0.2/24"), "{link}");
        assert!(!ip(there, "-o link").contains("eth7"));
    });
}
