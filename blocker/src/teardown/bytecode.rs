//! The filter that `sock_diag` runs on each socket before it copies it out: `INET_DIAG_REQ_BYTECODE`.
//!
//! Pure. Its format is that of `struct inet_diag_bc_op` and `struct inet_diag_hostcond` in
//! `include/uapi/linux/inet_diag.h`; `inet_diag_bc_run` of `net/ipv4/inet_diag.c` interprets it.
//! The netlink crates carry no encoding of it.

use ipnet::IpNet;

use crate::rule::Target;

/// Compares the remote's address and port.
const D_COND: u8 = 8;
/// Jumps.
const JMP: u8 = 1;
/// Any port, in a host condition.
const ANY_PORT: i32 = -1;

/// Most targets that are filtered for in the kernel.
///
/// The kernel evaluates the conditions in order, at some 5 ns each. To copy a socket to user space and
/// discard it costs some 500 ns. With more targets than this, every socket is copied.
const MOST_CONDITIONS: usize = 64;

/// The filter for one family of sockets: absent if no socket of the family can match, and without code
/// if every socket must be copied.
pub(crate) fn for_targets(targets: &[Target], ipv4_only: bool) -> Option<Option<Vec<u8>>> {
    let wanted: Vec<IpNet> = targets
        .iter()
        .map(|target| target.net())
        .filter(|net| !ipv4_only || matches!(net, IpNet::V4(_)))
        .take(MOST_CONDITIONS + 1)
        .collect();
    match wanted.len() {
        0 => None,
        1..=MOST_CONDITIONS => Some(Some(any_remote_of(&wanted))),
        _ => Some(None),
    }
}

/// Code that accepts a socket whose remote lies in any of the prefixes.
///
/// Each condition but the last is followed by a jump to the end, which accepts; one that fails
/// skips its jump. The last one's failure jumps past the end, which rejects.
fn any_remote_of(nets: &[IpNet]) -> Vec<u8> {
    let lengths: Vec<usize> = nets.iter().map(|net| condition(*net).len()).collect();
    let total = lengths.iter().map(|length| 4 + length).sum::<usize>() + 4 * (nets.len() - 1);
    let mut code = Vec::with_capacity(total);
    for (number, net) in nets.iter().enumerate() {
        let own = 4 + lengths[number];
        // At most 64 conditions of 28 bytes: everything fits the format's u8 and u16. Four bytes
        // further on is the next condition, or, for the last one, past the end.
        push_op(&mut code, D_COND, own, own + 4);
        code.extend(condition(*net));
        if number + 1 < nets.len() {
            let to_the_end = total - code.len();
            push_op(&mut code, JMP, 4, to_the_end);
        }
    }
    code
}

fn push_op(code: &mut Vec<u8>, op: u8, yes: usize, no: usize) {
    code.push(op);
    code.push(u8::try_from(yes).unwrap_or(u8::MAX));
    code.extend(u16::try_from(no).unwrap_or(u16::MAX).to_ne_bytes());
}

fn condition(net: IpNet) -> Vec<u8> {
    let family = match net {
        IpNet::V4(_) => libc::AF_INET,
        IpNet::V6(_) => libc::AF_INET6,
    };
    let mut bytes = vec![u8::try_from(family).unwrap_or(0), net.prefix_len(), 0, 0];
    bytes.extend(ANY_PORT.to_ne_bytes());
    match net {
        IpNet::V4(v4) => bytes.extend(v4.network().octets()),
        IpNet::V6(v6) => bytes.extend(v6.network().octets()),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// `inet_diag_bc_run`, for the operations used here.
    fn run(code: &[u8], remote: IpAddr) -> bool {
        let mut at = 0usize;
        while at < code.len() {
            let (op, yes) = (code[at], usize::from(code[at + 1]));
            let no = usize::from(u16::from_ne_bytes([code[at + 2], code[at + 3]]));
            let accepted = match op {
                D_COND => {
                    let (family, bits) = (i32::from(code[at + 4]), code[at + 5]);
                    let address = &code[at + 12..];
                    let net = if family == libc::AF_INET {
                        IpAddr::from(<[u8; 4]>::try_from(&address[..4]).unwrap())
                    } else {
                        IpAddr::from(<[u8; 16]>::try_from(&address[..16]).unwrap())
                    };
                    IpNet::new(net, bits).unwrap().contains(&remote)
                }
                JMP => false,
                other => panic!("operation {other}"),
            };
            at += if accepted { yes } else { no };
        }
        at == code.len()
    }

    fn targets(texts: &[&str]) -> Vec<Target> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_code_accepts_exactly_the_targets() {
        let targets = targets(&["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"]);
        let code = for_targets(&targets, false).unwrap().unwrap();
        for (remote, accepted) in [
            ("192.0.2.1", true),
            ("192.0.3.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
            ("198.51.100.7", true),
            ("198.51.100.8", false),
        ] {
            assert_eq!(run(&code, remote.parse().unwrap()), accepted, "{remote}");
        }
    }

    #[test]
    fn every_jump_lands_on_an_operation_or_just_past_the_end() {
        // What inet_diag_bc_audit demands.
        let many: Vec<String> = (0..64).map(|n| format!("2001:db8:{n}::/48")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for targets in [targets(&["192.0.2.1"]), targets(&many)] {
            let code = for_targets(&targets, false).unwrap().unwrap();
            let mut starts = Vec::new();
            let mut at = 0;
            while at < code.len() {
                starts.push(at);
                at += usize::from(code[at + 1]);
            }
            assert_eq!(at, code.len());
            starts.extend([code.len(), code.len() + 4]);
            for &start in starts.iter().filter(|&&start| start < code.len()) {
                let no = u16::from_ne_bytes([code[start + 2], code[start + 3]]);
                assert!(starts.contains(&(start + usize::from(no))));
            }
        }
    }

    #[test]
    fn an_ipv4_list_wants_no_code_for_ipv6_targets() {
        assert_eq!(for_targets(&targets(&["2001:db8::1"]), true), None);
        assert!(for_targets(&targets(&["192.0.2.1"]), false).is_some());
    }

    #[test]
    fn beyond_the_threshold_everything_is_copied() {
        let many: Vec<Target> = (0..=u32::try_from(MOST_CONDITIONS).unwrap())
            .map(|n| IpAddr::V4(n.into()).into())
            .collect();
        assert_eq!(for_targets(&many, true), Some(None));
        assert!(matches!(for_targets(&many[1..], true), Some(Some(_))));
    }
}
