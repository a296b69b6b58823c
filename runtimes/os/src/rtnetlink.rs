//! What the kernel's own tables of links and routes are asked for, one message and one answer at a time.
//!
//! Landlock knows ports and no addresses, so a port that is open is open everywhere: at the metadata service of a cloud,
//! which hands out the machine's credentials to whoever asks. Routing knows addresses, and by a rule it knows users:
//! what the user ids of tenants send to a closed network has no route, over TCP, UDP or anything else.

use std::{io, net::IpAddr, ops::RangeInclusive};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkFlags, LinkMessage},
    route::{RouteHeader, RouteProtocol},
    rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange, RuleUidRange},
};
use rustix::{
    io::Errno,
    net::{SocketFlags, SocketType},
};

/// Before all that machines have by themselves but the table of their own addresses. The next is the one that closes.
const PRIORITY: u32 = 10;
/// Names are asked for there, on some clouds at a link-local address.
const NAME_SERVERS: RulePortRange = RulePortRange { start: 53, end: 53 };

/// `ip link set lo up`, in the calling thread's network.
pub(crate) fn bring_lo_up() -> io::Result<()> {
    let mut lo = LinkMessage::default();
    lo.header.index = 1;
    lo.header.flags = LinkFlags::Up;
    lo.header.change_mask = LinkFlags::Up;
    ask(RouteNetlinkMessage::SetLink(lo), 0)
}

/// Takes the route to each of these networks from these user ids, in the calling thread's network; name servers are still
/// reached in them. The rules stay in the kernel: nobody else has these ids, and other hosts with the same ones may count on
/// them. Addresses of the machine itself keep their routes, which come first.
pub(crate) fn close_networks(networks: &[(IpAddr, u8)], uids: &RangeInclusive<u32>) -> io::Result<()> {
    for (address, prefix) in networks {
        for closes in [false, true] {
            let mut rule = RuleMessage::default();
            rule.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            rule.header.dst_len = *prefix;
            rule.header.table = RouteHeader::RT_TABLE_MAIN;
            rule.attributes = vec![
                RuleAttribute::Destination(*address),
                RuleAttribute::UidRange(RuleUidRange { start: *uids.start(), end: *uids.end() }),
                RuleAttribute::Priority(PRIORITY + u32::from(closes)),
                RuleAttribute::Protocol(RouteProtocol::Static),
            ];
            if closes {
                rule.header.action = RuleAction::Prohibit;
            } else {
                rule.header.action = RuleAction::ToTable;
                rule.attributes.push(RuleAttribute::DestinationPortRange(NAME_SERVERS));
            }
            match ask(RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {}
                // A kernel without IPv6 reaches none of its networks.
                Err(error)
                    if address.is_ipv6()
                        && error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Sends one request and waits for its acknowledgement.
fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is protocol 0.
        None,
    )?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    rustix::io::write(&socket, &bytes)?;
    let mut answer = [0; 1024];
    let length = rustix::io::read(&socket, &mut answer)?;
    let odd = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("rtnetlink: {what}"));
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer[..length])
        .map_err(|error| odd(error.to_string()))?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(odd(format!("no acknowledgement: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

    use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
    use nix::sched::{CloneFlags, unshare};
    use rustix::thread::{Gid, Uid, set_thread_res_gid, set_thread_res_uid};

    use super::*;

    /// In a network of its own, from which everything seems to be reached: by a route to `lo`.
    fn in_a_network(test: impl FnOnce() + Send) {
        if !rustix::process::geteuid().is_root() {
            return sas_testkit::skip("a network of its own needs root");
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                bring_lo_up().unwrap();
                let mut route = RouteMessage::default();
                route.header.address_family = AddressFamily::Inet;
                route.header.table = RouteHeader::RT_TABLE_MAIN;
                route.header.protocol = RouteProtocol::Static;
                route.header.scope = RouteScope::Link;
                route.header.kind = RouteType::Unicast;
                route.header.destination_prefix_length = 8;
                for first in [169, 10] {
                    let to = RouteAddress::Inet(Ipv4Addr::new(first, 0, 0, 0));
                    route.attributes = vec![RouteAttribute::Destination(to), RouteAttribute::Oif(1)];
                    ask(RouteNetlinkMessage::NewRoute(route.clone()), NLM_F_CREATE).unwrap();
                }
                test();
            });
        });
    }

    /// What comes of a datagram's way to an address, for a user. Nothing is sent.
    fn way(user: u32, to: &str) -> Result<(), io::ErrorKind> {
        std::thread::scope(|scope| {
            let trying = scope.spawn(|| {
                let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
                set_thread_res_gid(gid, gid, gid).unwrap();
                set_thread_res_uid(uid, uid, uid).unwrap();
                UdpSocket::bind("0.0.0.0:0").unwrap().connect(to).map_err(|error| error.kind())
            });
            trying.join().unwrap()
        })
    }

    #[test]
    fn tenants_have_no_way_to_a_closed_network_and_everybody_else_has() {
        in_a_network(|| {
            let closed = [(IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16), (Ipv6Addr::LOCALHOST.into(), 127)];
            let uids = 1_900_000_000..=1_900_065_535;
            close_networks(&closed, &uids).unwrap();
            close_networks(&closed, &uids).expect("another host with the same ids finds them there");
            let no_way = Err(io::ErrorKind::PermissionDenied);
            for user in [1_900_000_000, 1_900_000_001, 1_900_065_535] {
                for to in
                    ["169.254.169.254:80", "169.254.0.1:443", "169.254.169.254:52", "169.254.169.254:65535"]
                {
                    assert_eq!(way(user, to), no_way, "{user} to {to}");
                }
                for to in ["169.254.169.254:53", "169.253.0.1:80", "10.0.0.1:80", "127.0.0.1:80"] {
                    assert_eq!(way(user, to), Ok(()), "{user} to {to}");
                }
            }
            for user in [0, 1000, 1_899_999_999, 1_900_065_536] {
                assert_eq!(way(user, "169.254.169.254:80"), Ok(()), "{user}");
            }
        });
    }
}
