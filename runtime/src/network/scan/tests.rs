use super::*;

/// A message of the kernel's: a fixed header, and attributes.
fn received(header: &[u8], attributes: &[(u16, &[u8])]) -> Received {
    let message = Message::new(0, 0, header);
    let message = (attributes.iter()).fold(message, |message, (kind, content)| {
        message.attribute(*kind, content)
    });
    Received {
        kind: 0,
        payload: message.payload().to_vec(),
    }
}

/// An interface that is up.
fn link(hardware: u16, index: u32, name: &str) -> Received {
    let mut header = [0; 16];
    header[2..4].copy_from_slice(&hardware.to_ne_bytes());
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&libc::IFF_UP.to_ne_bytes());
    let mac = [2, 0, 0, 0, 0, 1];
    let name = [name.as_bytes(), &[0]].concat();
    received(
        &header,
        &[(libc::IFLA_IFNAME, &name), (libc::IFLA_ADDRESS, &mac)],
    )
}

#[test]
fn an_interface_that_cannot_be_had_leaves_the_others() {
    let links = [
        link(libc::ARPHRD_NONE, 2, "wg0"),
        link(libc::ARPHRD_ETHER, 4, "eth1"),
        link(libc::ARPHRD_ETHER, 3, "eth0"),
    ];
    let (interfaces, refused) = interfaces(&links);
    let names: Vec<_> = interfaces.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["eth0", "eth1"]);
    let [refused] = &refused[..] else {
        panic!("{refused:?}");
    };
    assert!(refused.to_string().contains("interface wg0"), "{refused}");
}

/// A route of an administrator's to 192.0.2.0/24.
fn to_network(attributes: &[(u16, &[u8])]) -> Received {
    let (family, table) = (libc::AF_INET.to_ne_bytes()[0], libc::RT_TABLE_MAIN);
    let header = [
        family,
        24,
        0,
        0,
        table,
        libc::RTPROT_STATIC,
        0,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    let mut all: Vec<(u16, &[u8])> = vec![(libc::RTA_DST, &[192, 0, 2, 0])];
    all.extend(attributes);
    received(&header, &all)
}

#[test]
fn of_several_ways_those_through_other_interfaces_are_left_out() {
    let known = BTreeSet::from([LOOPBACK, 3]);
    let hop = |index: u32, flags: u8| [&[8, 0, flags, 0][..], &index.to_ne_bytes()].concat();
    // Dead (1), and reachable though no address says so (4).
    let hops = [hop(3, 5), hop(4, 0), hop(3, 0)].concat();
    let found = route(&known, &to_network(&[(libc::RTA_MULTIPATH, &hops)])).unwrap();
    let left = rest(&found, ROUTE).find(libc::RTA_MULTIPATH);
    assert_eq!(left, Some(&[hop(3, 4), hop(3, 0)].concat()[..]));
    let elsewhere = to_network(&[(libc::RTA_MULTIPATH, &hop(4, 0))]);
    assert_eq!(route(&known, &elsewhere), None);
    // Cut short.
    assert!(next_hops(&known, &hop(3, 0)[..7]).is_empty());
    assert_eq!(next_hops(&known, &[200, 0, 0, 0, 3, 0, 0, 0]).len(), 8);
}

#[test]
fn a_next_hop_of_an_object_is_told_without_it() {
    let known = BTreeSet::from([LOOPBACK, 3]);
    let (id, index) = (7_u32.to_ne_bytes(), 3_u32.to_ne_bytes());
    let plain = to_network(&[(libc::RTA_OIF, &index)]);
    let by_object = to_network(&[(RTA_NH_ID, &id), (libc::RTA_OIF, &index)]);
    assert!(route(&known, &plain).is_some());
    assert_eq!(route(&known, &by_object), route(&known, &plain));
    let unresolved = to_network(&[(RTA_NH_ID, &id)]);
    assert_eq!(route(&known, &unresolved), None);
}

#[test]
fn local_routes_of_other_tables_are_kept() {
    let known = BTreeSet::from([LOOPBACK]);
    let local = |table: u8| {
        let mut message = to_network(&[(libc::RTA_OIF, &LOOPBACK.to_ne_bytes())]);
        message.payload[4] = table;
        message.payload[7] = libc::RTN_LOCAL;
        message
    };
    assert!(route(&known, &local(100)).is_some());
    // Those that follow from addresses.
    assert_eq!(route(&known, &local(libc::RT_TABLE_LOCAL)), None);
}

#[test]
fn an_address_that_is_somebody_elses_is_left_out_by_name() {
    let interface = interface(&link(libc::ARPHRD_ETHER, 3, "eth0").payload);
    let interfaces = [interface.unwrap().unwrap()];
    let known = BTreeSet::from([3]);
    let told = |address: &str, flags: u32| {
        let address: Ipv6Addr = address.parse().unwrap();
        let mut header = [libc::AF_INET6.to_ne_bytes()[0], 64, 0, 0, 3, 0, 0, 0];
        header[2] = flags.to_ne_bytes()[0];
        let flags = flags.to_ne_bytes();
        let address = address.octets();
        received(
            &header,
            &[(libc::IFA_ADDRESS, &address), (libc::IFA_FLAGS, &flags)],
        )
    };
    let clashing = libc::IFA_F_PERMANENT | libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED;
    let clashing = told("fd77::2", clashing);
    assert_eq!(address(&known, &clashing), None);
    let words = clash(&interfaces, &clashing).unwrap();
    assert!(
        words.contains("eth0") && words.contains("fd77::2"),
        "{words}"
    );

    let tentative = told("fd77::3", libc::IFA_F_PERMANENT | libc::IFA_F_TENTATIVE);
    let kept = address(&known, &tentative).unwrap();
    assert_eq!(
        address_flags(&kept),
        libc::IFA_F_PERMANENT | libc::IFA_F_NODAD
    );
    assert_eq!(clash(&interfaces, &tentative), None);
}
