//! Asks a guest for a TCP port, as a station of its segment: a handshake that is ended before anything is said.
//!
//! ```text
//!  who has X?  ─► all        nobody answers: X, a neighbour of the guest's address, is free (RFC 5227)
//!  SYN from X  ─► guest      guest: who has X? ─► X is here
//!              ◄─ SYN, ACK   the port takes connections; RST ─► guest
//!              ◄─ RST        it refuses
//! ```
//!
//! Frames of ours go to this one guest, and neither to other adapters nor to the host's network stack. The guest's own
//! firewall decides as it would for any neighbour.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};

use super::frame::{self, ACK, Arp, Content, Mac, RST, SYN, Tcp};
use super::hub::{Heard, Hub, OURS, Port};
use crate::PortAnswer;

/// For somebody to say that an address is taken.
const TAKEN_WITHIN: Duration = Duration::from_millis(400);
/// For an answer to a SYN, which is sent again once.
const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);
/// Neighbours that are tried: hosts of a /29 but the guest itself, which may be none of them in a larger subnet.
const CANDIDATES: usize = 6;

/// Asks for a port at one address of an adapter.
pub(super) async fn knock(hub: &Hub, to: &Port, address: Ipv4Addr, port: u16) -> PortAnswer {
    let mut heard = hub.listen();
    let taken: BTreeSet<Ipv4Addr> = hub
        .ports()
        .iter()
        .flat_map(|port| port.addresses.clone())
        .collect();
    let candidates = neighbours(address).filter(|candidate| !taken.contains(candidate));
    let Some(source) = free_one(hub, &mut heard, candidates.collect()).await else {
        return PortAnswer::NoNeighbour;
    };
    // Unlike that of the last question, so that a late answer to it is none to this one.
    let random = uuid::Uuid::new_v4().into_bytes();
    let syn = Tcp {
        source,
        target: address,
        source_port: 0xc000 | u16::from_be_bytes([random[0], random[1]]),
        target_port: port,
        sequence: u32::from_be_bytes([random[2], random[3], random[4], random[5]]),
        acknowledged: 0,
        flags: SYN,
    };
    for _ in 0..2 {
        hub.give(&to.socket, &frame::tcp_frame(to.mac, OURS, &syn))
            .await;
        let deadline = Instant::now() + ANSWER_WITHIN;
        while let Some(one) = next(&mut heard, deadline).await {
            if one.from != to.socket {
                continue;
            }
            match frame::read(&one.frame) {
                Content::Arp(question) if question.is_request && question.target == source => {
                    let answer = Arp {
                        is_request: false,
                        sender_mac: OURS,
                        sender: source,
                        target_mac: question.sender_mac,
                        target: question.sender,
                    };
                    hub.give(&to.socket, &frame::arp_frame(&answer)).await;
                }
                Content::Tcp(answer) => match judge(&syn, &answer) {
                    Some(PortAnswer::Open) => {
                        let end = Tcp {
                            sequence: answer.acknowledged,
                            acknowledged: 0,
                            flags: RST,
                            ..syn
                        };
                        hub.give(&to.socket, &frame::tcp_frame(to.mac, OURS, &end))
                            .await;
                        return PortAnswer::Open;
                    }
                    Some(other) => return other,
                    None => {}
                },
                _ => {}
            }
        }
    }
    PortAnswer::Silent
}

async fn next(
    heard: &mut tokio::sync::broadcast::Receiver<Heard>,
    deadline: Instant,
) -> Option<Heard> {
    loop {
        match timeout_at(deadline, heard.recv()).await {
            Ok(Ok(one)) => return Some(one),
            // What was missed is asked for again.
            Ok(Err(RecvError::Lagged(_))) => {}
            Ok(Err(RecvError::Closed)) | Err(_) => return None,
        }
    }
}

/// The first of these addresses that nobody of the segment has. All are asked for at once.
async fn free_one(
    hub: &Hub,
    heard: &mut tokio::sync::broadcast::Receiver<Heard>,
    mut candidates: Vec<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    for target in &candidates {
        let probe = frame::arp_frame(&Arp {
            is_request: true,
            sender_mac: OURS,
            sender: Ipv4Addr::UNSPECIFIED,
            target_mac: Mac([0; 6]),
            target: *target,
        });
        for port in hub.ports() {
            hub.give(&port.socket, &probe).await;
        }
    }
    let deadline = Instant::now() + TAKEN_WITHIN;
    while !candidates.is_empty()
        && let Some(one) = next(heard, deadline).await
    {
        if let Content::Arp(arp) = frame::read(&one.frame) {
            // Who asks for one while it has none wants to take it.
            let wanted = arp.is_request && arp.sender.is_unspecified();
            candidates.retain(|one| arp.sender != *one && !(wanted && arp.target == *one));
        }
    }
    candidates.first().copied()
}

/// Addresses beside the guest's that are in its subnet, whatever its mask is (up to /29; of a /30 the other host), and neither
/// the subnet's first nor its last: all of its /29.
fn neighbours(address: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
    let number = u32::from(address);
    let eight = number & !7;
    // 1 and 2 of each four are hosts even of a /30.
    let four = number & !3;
    let near = [four | 1, four | 2];
    let far = [
        eight | 1,
        eight | 2,
        eight | 5,
        eight | 6,
        eight | 3,
        eight | 4,
    ];
    let mut all: Vec<u32> = Vec::with_capacity(CANDIDATES);
    for candidate in near.into_iter().chain(far) {
        if candidate != number && !all.contains(&candidate) {
            all.push(candidate);
        }
    }
    all.into_iter().map(Ipv4Addr::from)
}

/// What a segment says to a SYN of ours; `None` when it is no answer to it.
fn judge(syn: &Tcp, answer: &Tcp) -> Option<PortAnswer> {
    let is_ours = (answer.source, answer.target) == (syn.target, syn.source)
        && (answer.source_port, answer.target_port) == (syn.target_port, syn.source_port)
        && answer.flags & ACK != 0
        && answer.acknowledged == syn.sequence.wrapping_add(1);
    if !is_ours {
        return None;
    }
    if answer.flags & RST != 0 {
        return Some(PortAnswer::Refused);
    }
    (answer.flags & SYN != 0).then_some(PortAnswer::Open)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use tokio::net::UnixDatagram;
    use uuid::Uuid;

    use super::super::hub::Segment;
    use super::*;
    use crate::VmId;

    const FIN: u8 = 0x01;

    /// A guest of a segment that answers for its address, and takes connections on port 80.
    struct Guest {
        mac: Mac,
    }

    impl Guest {
        fn new(folder: &Path, segment: &Segment, number: u8) -> Self {
            let (path, hub) = (folder.join(format!("{number}.sock")), folder.join("s.sock"));
            let (mac, own) = (Mac([0x52, 0x54, 0, 0, 0, number]), address(number));
            let socket = UnixDatagram::bind(&path).unwrap();
            segment
                .hub()
                .add(VmId(Uuid::from_u128(number.into())), path, mac);
            tokio::spawn(async move {
                let mut buffer = [0; 2_000];
                loop {
                    let length = socket.recv(&mut buffer).await.unwrap();
                    if let Some(answer) = answer(&buffer[..length], mac, own) {
                        socket.send_to(&answer, &hub).await.unwrap();
                    }
                }
            });
            Self { mac }
        }
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, 0, last)
    }

    fn answer(frame: &[u8], mac: Mac, own: Ipv4Addr) -> Option<Vec<u8>> {
        match frame::read(frame) {
            Content::Arp(asked) if asked.is_request && asked.target == own => {
                Some(frame::arp_frame(&Arp {
                    is_request: false,
                    sender_mac: mac,
                    sender: own,
                    target_mac: asked.sender_mac,
                    target: asked.sender,
                }))
            }
            Content::Tcp(syn) if syn.target == own && syn.flags == SYN => {
                let flags = if syn.target_port == 80 {
                    SYN | ACK
                } else {
                    RST | ACK
                };
                let (source, target) = (syn.target, syn.source);
                let (source_port, target_port) = (syn.target_port, syn.source_port);
                let acknowledged = syn.sequence.wrapping_add(1);
                let answer = Tcp {
                    source,
                    target,
                    source_port,
                    target_port,
                    sequence: 7,
                    acknowledged,
                    flags,
                };
                Some(frame::tcp_frame(OURS, mac, &answer))
            }
            _ => None,
        }
    }

    #[tokio::test]
    async fn the_last_free_neighbour_is_found_and_none_at_all_is_said_to_be_that() {
        let folder = tempfile::tempdir().unwrap();
        let segment = Segment::open(&folder.path().join("s.sock")).unwrap();
        // All but one of a /29; what they have was never seen of them.
        let mut guests: Vec<Guest> = [1, 2, 3, 5, 6]
            .map(|number| Guest::new(folder.path(), &segment, number))
            .into();
        let hub = segment.hub();
        let port = |mac| {
            hub.ports()
                .into_iter()
                .find(|port| port.mac == mac)
                .unwrap()
        };
        let first = port(guests[0].mac);
        assert_eq!(knock(hub, &first, address(1), 80).await, PortAnswer::Open);
        assert_eq!(
            knock(hub, &first, address(1), 81).await,
            PortAnswer::Refused
        );
        guests.push(Guest::new(folder.path(), &segment, 4));
        assert_eq!(
            knock(hub, &first, address(1), 80).await,
            PortAnswer::NoNeighbour
        );
    }

    proptest! {
        #[test]
        fn a_neighbour_is_a_host_of_the_guests_own_subnet_of_any_size(number in any::<u32>(), bits in 8_u32..=30) {
            let mask = u32::MAX << (32 - bits);
            let (first, last) = (number & mask, number | !mask);
            prop_assume!(number != first && number != last);
            let all: Vec<u32> = neighbours(number.into()).map(u32::from).collect();
            prop_assert!(!all.is_empty() && all.len() <= CANDIDATES);
            prop_assert!(!all.contains(&number));
            let of_eight = (number & !7 | 1..number & !7 | 7).filter(|one| *one != number);
            prop_assert!(bits > 29 || of_eight.clone().all(|one| all.contains(&one)));
            // Of a /30 only the other host is one; it comes first.
            let sure = if bits == 30 { 1 } else { all.len() };
            for candidate in &all[..sure] {
                prop_assert!(first < *candidate && *candidate < last, "{} of {}/{bits}", Ipv4Addr::from(*candidate), Ipv4Addr::from(number));
            }
        }

        #[test]
        fn only_an_answer_to_this_very_question_counts(sequence in any::<u32>(), off in 1_u32.., flags in 0_u8..0x40) {
            let syn = Tcp {
                source: [10, 0, 0, 1].into(), target: [10, 0, 0, 2].into(), source_port: 50_000, target_port: 80,
                sequence, acknowledged: 0, flags: SYN,
            };
            let answer = Tcp {
                source: syn.target, target: syn.source, source_port: 80, target_port: 50_000,
                sequence: 7, acknowledged: sequence.wrapping_add(1), flags: SYN | ACK,
            };
            prop_assert_eq!(judge(&syn, &answer), Some(PortAnswer::Open));
            prop_assert_eq!(judge(&syn, &Tcp { flags: RST | ACK, ..answer }), Some(PortAnswer::Refused));
            prop_assert_eq!(judge(&syn, &Tcp { flags: FIN | ACK, ..answer }), None);
            let late = Tcp { acknowledged: answer.acknowledged.wrapping_add(off), flags, ..answer };
            prop_assert_eq!(judge(&syn, &late), None);
            prop_assert_eq!(judge(&syn, &Tcp { source_port: 81, flags, ..answer }), None);
            prop_assert_eq!(judge(&syn, &Tcp { source: [10, 0, 0, 3].into(), flags, ..answer }), None);
        }
    }
}
