//! One segment: a repeater between Unix datagram sockets, one for each adapter.
//!
//! ```text
//!  QEMU of VM a ─ run/net0.sock ─┐
//!  QEMU of VM b ─ run/net0.sock ─┼─ segments/<id>.sock   (this process)
//!  QEMU of VM b ─ run/net1.sock ─┘
//! ```
//!
//! Promise: a frame goes to adapters of this segment and to nothing else; nothing of it touches a network of the host. What
//! comes from a socket that is none of its adapters is dropped. There are no connections: when this process dies the segment
//! is silent, and when another one opens it again it goes on, without QEMU having to do anything. A process that lives keeps
//! its segment: nobody takes it from there.

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::net::UnixDatagram;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use super::frame::{self, Content, Mac};
use crate::VmId;

/// Largest frame that QEMU passes on (`NET_BUFSIZE`).
const MAX_FRAME: usize = 4_096 + 65_536;
/// Addresses that are remembered of an adapter.
const MAX_ADDRESSES: usize = 8;
/// Frames for who asks for a port that may wait.
const HEARD: usize = 256;
/// How often a frame is offered again to a guest that is slow to take others.
const OFFERS: u32 = 64;

/// Our own card on every segment; the address is locally administered, and no adapter of QEMU's or Hyper-V's range has it.
pub(super) const OURS: Mac = Mac([0x02, 0x53, 0x52, 0x00, 0x00, 0x01]);

/// An adapter of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) vm: VmId,
    /// QEMU's end.
    pub(super) socket: PathBuf,
    pub(super) mac: Mac,
    /// What its guest was seen to use, the newest last.
    pub(super) addresses: Vec<Ipv4Addr>,
}

/// A frame for us, or for all.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// The adapter's socket.
    pub(super) from: PathBuf,
    pub(super) frame: Bytes,
}

/// What is shared with who asks for ports.
#[derive(Debug)]
pub(super) struct Hub {
    socket: UnixDatagram,
    ports: Mutex<Vec<Port>>,
    heard: broadcast::Sender<Heard>,
}

/// A segment that works for as long as this lives.
#[derive(Debug)]
pub(super) struct Segment {
    hub: Arc<Hub>,
    path: PathBuf,
    /// Which file is ours: another process may have opened the segment anew.
    inode: u64,
    task: JoinHandle<()>,
}

impl Segment {
    /// Opens a segment, in place of a process that is gone. Only this user may reach it.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] while another process, or another part of this one, has it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            let mut folder = std::fs::DirBuilder::new();
            folder.recursive(true).mode(0o700).create(parent)?;
        }
        let hub = Arc::new(Hub {
            socket: bind(path)?,
            ports: Mutex::default(),
            heard: broadcast::Sender::new(HEARD),
        });
        Ok(Self {
            task: tokio::spawn(hub.clone().repeat()),
            inode: std::fs::metadata(path)?.ino(),
            path: path.to_owned(),
            hub,
        })
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Whether it can still be reached at its path.
    pub(super) fn is_open(&self) -> bool {
        !self.task.is_finished()
            && std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode)
    }
}

/// Binds a socket where nobody is. What a process that is gone left there is replaced.
fn bind(path: &Path) -> io::Result<UnixDatagram> {
    match UnixDatagram::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        other => return other,
    }
    // The system lets nobody connect to a socket whose process is gone.
    let other = UnixDatagram::unbound()?.connect(path);
    match other {
        Ok(()) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixDatagram::bind(path)
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.task.abort();
        if std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            // One that stays is replaced when the segment is opened again.
            let _ = std::fs::remove_file(&self.path);
            // The last one leaves no trace; with others in it the folder stays.
            let _ = self.path.parent().map(std::fs::remove_dir);
        }
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Vec<Port>> {
        // Each change is whole.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an adapter; one that is there keeps what is known of it.
    pub(super) fn add(&self, vm: VmId, socket: PathBuf, mac: Mac) {
        let mut ports = self.lock();
        match ports.iter_mut().find(|port| port.socket == socket) {
            Some(port) => (port.vm, port.mac) = (vm, mac),
            None => ports.push(Port {
                vm,
                socket,
                mac,
                addresses: Vec::new(),
            }),
        }
    }

    /// Takes a VM's adapters away; says whether any adapter is left.
    pub(super) fn remove(&self, vm: VmId) -> bool {
        let mut ports = self.lock();
        ports.retain(|port| port.vm != vm);
        !ports.is_empty()
    }

    /// All adapters.
    pub(super) fn ports(&self) -> Vec<Port> {
        self.lock().clone()
    }

    /// Frames for us and for all, from now on.
    pub(super) fn listen(&self) -> broadcast::Receiver<Heard> {
        self.heard.subscribe()
    }

    /// Gives a frame to one adapter; a guest that takes none loses it, as on any network.
    pub(super) async fn give(&self, to: &Path, frame: &[u8]) {
        for _ in 0..OFFERS {
            match self.socket.try_send_to(frame, to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::task::yield_now().await;
                }
                // A VM that is off has nobody at its end.
                Ok(_) | Err(_) => return,
            }
        }
    }

    async fn repeat(self: Arc<Self>) {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            let (length, from) = match self.socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::error!(%error, "a private network can't be read any more");
                    return;
                }
            };
            let frame = buffer.get(..length).unwrap_or_default();
            let Some(from) = from.as_pathname() else {
                continue;
            };
            let Some((to, source)) = frame::addresses(frame) else {
                continue;
            };
            let Some(targets) = self.targets(from, to, source, frame) else {
                continue;
            };
            if (to == OURS || to.is_group()) && self.heard.receiver_count() > 0 {
                // Nobody listens any more: which is no error.
                let _ = self.heard.send(Heard {
                    from: from.to_owned(),
                    frame: Bytes::copy_from_slice(frame),
                });
            }
            for target in targets {
                self.give(&target, frame).await;
            }
        }
    }

    /// Who gets a frame; `None` when it is from nobody of this segment. Remembers whose address it tells of.
    fn targets(&self, from: &Path, to: Mac, source: Mac, frame: &[u8]) -> Option<Vec<PathBuf>> {
        let mut ports = self.lock();
        let sender = ports.iter_mut().find(|port| port.socket == from)?;
        if source == sender.mac
            && let Some(address) = told(frame, source)
            && sender.addresses.last() != Some(&address)
        {
            sender.addresses.retain(|known| *known != address);
            sender.addresses.push(address);
            if sender.addresses.len() > MAX_ADDRESSES {
                sender.addresses.remove(0);
            }
        }
        if to == OURS {
            return Some(Vec::new());
        }
        let others = || ports.iter().filter(|port| port.socket != from);
        // A card that is none of ours may be behind any of them: a guest may bridge, or run guests itself.
        let known = others().find(|port| port.mac == to);
        Some(match known {
            Some(port) => vec![port.socket.clone()],
            None => others().map(|port| port.socket.clone()).collect(),
        })
    }
}

/// The address that a guest's frame shows it to have.
fn told(frame: &[u8], source: Mac) -> Option<Ipv4Addr> {
    let address = match frame::read(frame) {
        Content::Arp(arp) if arp.sender_mac == source => arp.sender,
        Content::Tcp(tcp) => tcp.source,
        Content::Ipv4 { source } => source,
        Content::Arp(_) | Content::Other => return None,
    };
    let is_one = !address.is_unspecified()
        && !address.is_broadcast()
        && !address.is_multicast()
        && !address.is_loopback();
    is_one.then_some(address)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::frame::{Arp, arp_frame};
    use super::*;

    struct Guest {
        socket: UnixDatagram,
        path: PathBuf,
        mac: Mac,
        hub: PathBuf,
    }

    impl Guest {
        fn new(folder: &Path, segment: &Segment, number: u8) -> Self {
            let path = folder.join(format!("net{number}.sock"));
            let guest = Self {
                socket: UnixDatagram::bind(&path).unwrap(),
                mac: Mac([0x52, 0x54, 0, 0, 0, number]),
                hub: segment.path.clone(),
                path,
            };
            let vm = VmId(Uuid::from_u128(number.into()));
            segment.hub.add(vm, guest.path.clone(), guest.mac);
            guest
        }

        async fn say(&self, to: Mac, text: &[u8]) {
            let mut frame = to.0.to_vec();
            frame.extend_from_slice(&self.mac.0);
            frame.extend_from_slice(&[0x88, 0xb5]);
            frame.extend_from_slice(text);
            self.socket.send_to(&frame, &self.hub).await.unwrap();
        }

        /// The text of the next frame.
        async fn hear(&self) -> Vec<u8> {
            let mut buffer = [0; 2_000];
            let (length, from) = self.socket.recv_from(&mut buffer).await.unwrap();
            assert_eq!(from.as_pathname(), Some(self.hub.as_path()));
            buffer[14..length].to_vec()
        }

        fn hears_nothing(&self) -> bool {
            let error = self.socket.try_recv(&mut [0; 100]).err();
            error.is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        }
    }

    #[tokio::test]
    async fn adapters_of_one_segment_reach_one_another_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| {
            let path = folder.path().join(format!("segments/{name}.sock"));
            Segment::open(&path).unwrap()
        });
        let [a, b, c] = [1, 2, 3].map(|number| Guest::new(folder.path(), &one, number));
        let d = Guest::new(folder.path(), &other, 4);
        let stranger = Guest {
            socket: UnixDatagram::bind(folder.path().join("stranger.sock")).unwrap(),
            path: folder.path().join("stranger.sock"),
            ..Guest::new(folder.path(), &other, 5)
        };
        let stranger = Guest {
            hub: one.path.clone(),
            ..stranger
        };
        // What a stranger says, and what another segment's adapter sends here, is dropped before what comes later.
        stranger.say(Mac::BROADCAST, b"stranger").await;
        d.socket.send_to(&[0xff; 60], &a.hub).await.unwrap();
        a.say(Mac::BROADCAST, b"all").await;
        assert_eq!(
            (b.hear().await, c.hear().await),
            (b"all".to_vec(), b"all".to_vec())
        );
        a.say(b.mac, b"b alone").await;
        a.say(c.mac, b"c alone").await;
        assert_eq!(
            (b.hear().await, c.hear().await),
            (b"b alone".to_vec(), b"c alone".to_vec())
        );
        b.say(Mac([2, 9, 9, 9, 9, 9]), b"unknown").await;
        assert_eq!(
            (a.hear().await, c.hear().await),
            (b"unknown".to_vec(), b"unknown".to_vec())
        );
        assert!(a.hears_nothing() && b.hears_nothing() && d.hears_nothing());
    }

    #[tokio::test]
    async fn a_segment_is_never_taken_from_who_has_it_and_goes_on_after_one_that_died() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let first = Segment::open(&path).unwrap();
        let [a, b] = [1, 2].map(|number| Guest::new(folder.path(), &first, number));
        let refused = Segment::open(&path).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert!(first.is_open());
        a.say(Mac::BROADCAST, b"still").await;
        assert_eq!(b.hear().await, b"still");
        drop(first);
        assert!(!path.exists());
        // As a process that was killed leaves it.
        drop(std::os::unix::net::UnixDatagram::bind(&path).unwrap());
        assert!(path.exists());
        let again = Segment::open(&path).unwrap();
        for guest in [&a, &b] {
            again
                .hub
                .add(VmId(Uuid::nil()), guest.path.clone(), guest.mac);
        }
        a.say(Mac::BROADCAST, b"again").await;
        assert_eq!(b.hear().await, b"again");
    }

    #[tokio::test]
    async fn a_segment_that_is_opened_again_goes_on_and_a_late_end_of_the_old_one_harms_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let before = Segment::open(&path).unwrap();
        let a = Guest::new(folder.path(), &before, 1);
        // Somebody removes its socket.
        std::fs::remove_file(&path).unwrap();
        let again = Segment::open(&path).unwrap();
        assert!(!before.is_open() && again.is_open());
        again.hub.add(VmId(Uuid::nil()), a.path.clone(), a.mac);
        let b = Guest::new(folder.path(), &again, 2);
        drop(before);
        a.say(Mac::BROADCAST, b"hello").await;
        assert_eq!(b.hear().await, b"hello");
        drop(again);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_a_guest_uses_as_its_address_is_remembered_and_what_it_says_of_others_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let segment = Segment::open(&folder.path().join("s.sock")).unwrap();
        let [a, b] = [1, 2].map(|number| Guest::new(folder.path(), &segment, number));
        let arp = |sender_mac, last| {
            let (sender, target) = (Ipv4Addr::new(10, 0, 0, last), Ipv4Addr::new(10, 0, 0, 1));
            let target_mac = Mac([0; 6]);
            let is_request = true;
            arp_frame(&Arp {
                is_request,
                sender_mac,
                sender,
                target_mac,
                target,
            })
        };
        for frame in [arp(a.mac, 7), arp(b.mac, 8), arp(a.mac, 9), arp(a.mac, 7)] {
            a.socket.send_to(&frame, &a.hub).await.unwrap();
            b.hear().await;
        }
        let ports = segment.hub.ports();
        let known = ports.iter().find(|port| port.mac == a.mac).unwrap();
        assert_eq!(
            known.addresses,
            [9, 7].map(|last| Ipv4Addr::new(10, 0, 0, last))
        );
        assert!(segment.hub.remove(known.vm) && !segment.hub.remove(VmId(Uuid::from_u128(2))));
    }
}
