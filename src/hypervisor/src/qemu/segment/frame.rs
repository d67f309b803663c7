//! The few frames that asking for a TCP port takes: ARP (RFC 826), and TCP without data over IPv4 (RFC 9293, RFC 791).
//!
//! What a guest sends is never trusted: lengths are checked before anything is read, and what is not understood is nothing.

use std::fmt;
use std::net::Ipv4Addr;

/// Destination, source and type.
const ETHERNET: usize = 14;
/// Shortest frame without its checksum; real adapters never send less.
const MIN_FRAME: usize = 60;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
const ARP: usize = 28;
/// Without options, as we send it.
const IPV4: usize = 20;
/// With the option that tells the largest segment.
const TCP: usize = 24;
const PROTOCOL_TCP: u8 = 6;

/// TCP flags, in the bits of the header.
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// A network card's address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mac(pub(super) [u8; 6]);

impl Mac {
    pub(super) const BROADCAST: Mac = Mac([0xff; 6]);

    /// From six octets in hexadecimal with colons.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(octets))
    }

    /// Whether it names more than one card.
    pub(super) fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Whom a frame is for and whom it is from.
pub(super) fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    if frame.len() < ETHERNET {
        return None;
    }
    Some((Mac(array(frame, 0)?), Mac(array(frame, 6)?)))
}

/// What a frame carries, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Arp(Arp),
    Tcp(Tcp),
    /// Any other IPv4.
    Ipv4 {
        source: Ipv4Addr,
    },
    Other,
}

/// Who asks for, or tells of, an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arp {
    pub(super) is_request: bool,
    pub(super) sender_mac: Mac,
    pub(super) sender: Ipv4Addr,
    pub(super) target_mac: Mac,
    pub(super) target: Ipv4Addr,
}

/// A TCP segment's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tcp {
    pub(super) source: Ipv4Addr,
    pub(super) target: Ipv4Addr,
    pub(super) source_port: u16,
    pub(super) target_port: u16,
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) flags: u8,
}

/// Reads a frame. Checksums are not looked at: between VMs of one host guests may leave them out.
pub(super) fn read(frame: &[u8]) -> Content {
    let kind = array(frame, 12).map(u16::from_be_bytes);
    let body = frame.get(ETHERNET..).unwrap_or_default();
    let content = match kind {
        Some(TYPE_ARP) => arp(body).map(Content::Arp),
        Some(TYPE_IPV4) => ipv4(body),
        _ => None,
    };
    content.unwrap_or(Content::Other)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    array::<4>(bytes, at).map(Ipv4Addr::from)
}

fn arp(body: &[u8]) -> Option<Arp> {
    // Ethernet and IPv4, with their lengths.
    if array(body, 0)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let is_request = match array(body, 6)? {
        [0, 1] => true,
        [0, 2] => false,
        _ => return None,
    };
    Some(Arp {
        is_request,
        sender_mac: Mac(array(body, 8)?),
        sender: address(body, 14)?,
        target_mac: Mac(array(body, 18)?),
        target: address(body, 24)?,
    })
}

fn ipv4(body: &[u8]) -> Option<Content> {
    let first = *body.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < IPV4 || body.len() < header {
        return None;
    }
    let source = address(body, 12)?;
    let other = Content::Ipv4 { source };
    let fragment = u16::from_be_bytes(array(body, 6)?) & 0x3fff;
    let total = usize::from(u16::from_be_bytes(array(body, 2)?));
    // A fragment's ports may be anywhere; nobody cuts a segment without data.
    if body.get(9) != Some(&PROTOCOL_TCP) || fragment != 0 {
        return Some(other);
    }
    let Some(segment) = body.get(header..total) else {
        return Some(other);
    };
    let tcp = || {
        Some(Tcp {
            source,
            target: address(body, 16)?,
            source_port: u16::from_be_bytes(array(segment, 0)?),
            target_port: u16::from_be_bytes(array(segment, 2)?),
            sequence: u32::from_be_bytes(array(segment, 4)?),
            acknowledged: u32::from_be_bytes(array(segment, 8)?),
            flags: *segment.get(13)?,
        })
    };
    Some(tcp().map_or(other, Content::Tcp))
}

fn ethernet(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(MIN_FRAME.max(ETHERNET + body.len()));
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(body);
    frame.resize(frame.len().max(MIN_FRAME), 0);
    frame
}

/// A question for an address, to all; or an answer, to who asked.
pub(super) fn arp_frame(arp: &Arp) -> Vec<u8> {
    let mut body = Vec::with_capacity(ARP);
    body.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, if arp.is_request { 1 } else { 2 }]);
    body.extend_from_slice(&arp.sender_mac.0);
    body.extend_from_slice(&arp.sender.octets());
    body.extend_from_slice(&arp.target_mac.0);
    body.extend_from_slice(&arp.target.octets());
    let to = if arp.is_request {
        Mac::BROADCAST
    } else {
        arp.target_mac
    };
    ethernet(to, arp.sender_mac, TYPE_ARP, &body)
}

/// A segment without data.
pub(super) fn tcp_frame(to: Mac, from: Mac, tcp: &Tcp) -> Vec<u8> {
    let mut segment = Vec::with_capacity(TCP);
    segment.extend_from_slice(&tcp.source_port.to_be_bytes());
    segment.extend_from_slice(&tcp.target_port.to_be_bytes());
    segment.extend_from_slice(&tcp.sequence.to_be_bytes());
    segment.extend_from_slice(&tcp.acknowledged.to_be_bytes());
    // Six words; a window that any stack takes; checksum below; nothing urgent; largest segment 1460.
    segment.extend_from_slice(&[6 << 4, tcp.flags, 0x20, 0, 0, 0, 0, 0, 2, 4, 0x05, 0xb4]);
    let mut pseudo = Vec::with_capacity(12 + TCP);
    pseudo.extend_from_slice(&tcp.source.octets());
    pseudo.extend_from_slice(&tcp.target.octets());
    pseudo.extend_from_slice(&[0, PROTOCOL_TCP, 0, TCP as u8]);
    pseudo.extend_from_slice(&segment);
    segment[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());

    let mut packet = Vec::with_capacity(IPV4 + TCP);
    // Not to be cut; 64 hops.
    packet.extend_from_slice(&[0x45, 0, 0, (IPV4 + TCP) as u8, 0, 0, 0x40, 0]);
    packet.extend_from_slice(&[64, PROTOCOL_TCP, 0, 0]);
    packet.extend_from_slice(&tcp.source.octets());
    packet.extend_from_slice(&tcp.target.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&segment);
    ethernet(to, from, TYPE_IPV4, &packet)
}

/// RFC 1071; of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);

    #[test]
    fn an_address_is_read_as_it_is_written() {
        assert_eq!(Mac::parse("52:54:00:01:02:03"), Some(B));
        assert_eq!(format!("{B:?}"), "52:54:00:01:02:03");
        for text in ["", "52:54:00:01:02", "52:54:00:01:02:03:04", "x:0:0:0:0:0"] {
            assert_eq!(Mac::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 1071, section 3: the sum is ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&bytes), !0xddf2);
    }

    fn any_address() -> impl Strategy<Value = Ipv4Addr> {
        any::<u32>().prop_map(Ipv4Addr::from)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_the_same_with_right_checksums(
            source in any_address(), target in any_address(), ports in any::<(u16, u16)>(),
            numbers in any::<(u32, u32)>(), flags in 0_u8..0x40,
        ) {
            let tcp = Tcp {
                source, target, source_port: ports.0, target_port: ports.1,
                sequence: numbers.0, acknowledged: numbers.1, flags,
            };
            let frame = tcp_frame(B, A, &tcp);
            prop_assert_eq!(addresses(&frame), Some((B, A)));
            prop_assert_eq!(read(&frame), Content::Tcp(tcp));
            let packet = &frame[ETHERNET..ETHERNET + IPV4];
            prop_assert_eq!(checksum(packet), 0);
            let mut pseudo = packet[12..20].to_vec();
            pseudo.extend_from_slice(&[0, PROTOCOL_TCP, 0, TCP as u8]);
            pseudo.extend_from_slice(&frame[ETHERNET + IPV4..ETHERNET + IPV4 + TCP]);
            prop_assert_eq!(checksum(&pseudo), 0);
            let arp = Arp { is_request: flags & 1 == 0, sender_mac: A, sender: source, target_mac: B, target };
            prop_assert_eq!(read(&arp_frame(&arp)), Content::Arp(arp));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0..3_u8) {
            let mut frame = bytes;
            if frame.len() > 14 && kind > 0 {
                frame[12..14].copy_from_slice(&if kind == 1 { TYPE_ARP } else { TYPE_IPV4 }.to_be_bytes());
                if kind == 2 {
                    frame[14] = 0x40 | (frame[14] & 0x0f);
                }
            }
            read(&frame);
            addresses(&frame);
        }
    }
}
