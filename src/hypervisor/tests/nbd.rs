//! The NBD server against QEMU's tools and against hostile clients; the client against hostile servers.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hypervisor::nbd::{BlockReader, NbdClient, NbdError, NbdExport, NbdServer, serve};
use proptest::prelude::*;
use support::{MIB, tool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

struct Memory(Vec<u8>);

#[async_trait]
impl BlockReader for Memory {
    async fn read(&self, offset: u64, length: usize) -> std::io::Result<Bytes> {
        let start = offset as usize;
        if self.0[start..start + length].contains(&0xff) {
            return Err(std::io::Error::other("bad block"));
        }
        Ok(Bytes::copy_from_slice(&self.0[start..start + length]))
    }
}

fn bytes(size: u64, seed: u64) -> Vec<u8> {
    (0..size)
        .map(|at| ((at * 2_654_435_761 + seed) >> 13) as u8 % 255)
        .collect()
}

async fn server(folder: &Path, exports: &[(&str, Vec<u8>)]) -> NbdServer {
    let exports = exports
        .iter()
        .map(|(name, data)| NbdExport {
            name: (*name).to_owned(),
            size_bytes: data.len() as u64,
            reader: Arc::new(Memory(data.clone())),
        })
        .collect();
    serve(&folder.join("s"), exports).await.unwrap()
}

fn url(server: &NbdServer, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", server.socket().display())
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_sees_the_same_bytes_in_every_export() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (bytes(40 * MIB, 1), bytes(3 * MIB + 512, 2));
    let server = server(folder.path(), &[("one", one.clone()), ("two", two.clone())]).await;
    for (name, data) in [("one", one), ("two", two)] {
        let raw = folder.path().join(name);
        std::fs::write(&raw, &data).unwrap();
        let text = tool(
            "qemu-img",
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                "raw",
                raw.to_str().unwrap(),
                &url(&server, name),
            ],
        );
        assert!(text.contains("identical"), "{text}");
    }
    let list = tool(
        "qemu-nbd",
        &["--list", "-k", server.socket().to_str().unwrap()],
    );
    assert!(
        list.contains("'one'") && list.contains("'two'") && list.contains("readonly"),
        "{list}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_block_fails_one_read_and_a_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut data = bytes(MIB, 3);
    data[70_000] = 0xff;
    let server = server(folder.path(), &[("disk", data)]).await;
    let run = |command: &str| {
        let output = std::process::Command::new("qemu-io")
            .args(["-r", "-f", "raw", "-c", command, &url(&server, "disk")])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    assert!(run("read 0 65536").contains("read 65536/65536"));
    assert!(run("read 65536 65536").contains("failed: Input/output error"));
    assert!(run("read 131072 65536").contains("read 65536/65536"));
    assert!(run("write 0 512").contains("read-only"));

    // A client that writes all the same gets an error, and loses its connection as its data can't be told from requests.
    let mut stream = transmission(server.socket(), "disk").await;
    stream.write_all(&request(1, 9, 0, 512)).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[4..8], 1u32.to_be_bytes());
    assert_eq!(answer.len(), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_servers_socket_is_replaced_and_a_living_ones_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let first = serve(&path, Vec::new()).await.unwrap();
    assert!(matches!(
        serve(&path, Vec::new()).await,
        Err(NbdError::Socket { .. })
    ));
    first.stop().await;
    assert!(!path.exists());
}

/// Handshake up to the transmission phase.
async fn transmission(path: &Path, export: &str) -> UnixStream {
    let mut stream = UnixStream::connect(path).await.unwrap();
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).await.unwrap();
    let mut message = 3u32.to_be_bytes().to_vec();
    message.extend_from_slice(b"IHAVEOPT");
    message.extend_from_slice(&1u32.to_be_bytes());
    message.extend_from_slice(&(export.len() as u32).to_be_bytes());
    message.extend_from_slice(export.as_bytes());
    stream.write_all(&message).await.unwrap();
    let mut facts = [0; 10];
    stream.read_exact(&mut facts).await.unwrap();
    stream
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut message = 0x2560_9513u32.to_be_bytes().to_vec();
    message.extend_from_slice(&0u16.to_be_bytes());
    message.extend_from_slice(&command.to_be_bytes());
    message.extend_from_slice(&cookie.to_be_bytes());
    message.extend_from_slice(&offset.to_be_bytes());
    message.extend_from_slice(&length.to_be_bytes());
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_out_of_range_get_an_error_and_the_connection_lives() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path(), &[("disk", bytes(MIB, 4))]).await;
    let mut stream = transmission(server.socket(), "disk").await;
    for (command, offset, length, expected) in [
        (0, MIB - 512, 1024, 22),
        (0, u64::MAX, 1, 22),
        (0, u64::MAX - 10, u32::MAX, 75),
        (0, 0, 33 << 20, 75),
        (99, 0, 0, 22),
        (3, 0, 0, 0),
        (0, MIB, 0, 0),
    ] {
        stream
            .write_all(&request(command, 5, offset, length))
            .await
            .unwrap();
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        assert_eq!(
            u32::from_be_bytes(reply[4..8].try_into().unwrap()),
            expected,
            "{command} {offset} {length}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_and_does_not_listen_stops_only_itself() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path(), &[("disk", bytes(16 * MIB, 5))]).await;
    let mut deaf = transmission(server.socket(), "disk").await;
    for cookie in 0..64 {
        deaf.write_all(&request(0, cookie, 0, 16 << 20))
            .await
            .unwrap();
    }
    let mut polite = transmission(server.socket(), "disk").await;
    polite.write_all(&request(0, 1, 4096, 512)).await.unwrap();
    let mut reply = [0; 16 + 512];
    polite.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[16..], bytes(16 * MIB, 5)[4096..4608]);
    drop(deaf);
    server.stop().await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nonsense_after_any_valid_beginning_harms_no_server(
        begin in 0usize..3,
        noise in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        runtime().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let server = server(folder.path(), &[("disk", bytes(4096, 6))]).await;
            let mut hostile = match begin {
                0 => UnixStream::connect(server.socket()).await.unwrap(),
                1 => {
                    let mut stream = UnixStream::connect(server.socket()).await.unwrap();
                    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07").await.unwrap();
                    stream
                }
                _ => transmission(server.socket(), "disk").await,
            };
            // It may hang up in the middle, which is its good right.
            let _ = hostile.write_all(&noise).await;
            let _ = hostile.shutdown().await;
            let mut answer = Vec::new();
            let _ = hostile.read_to_end(&mut answer).await;
            assert!(answer.len() < 64 << 10);
            let mut polite = transmission(server.socket(), "disk").await;
            polite.write_all(&request(0, 1, 0, 16)).await.unwrap();
            let mut reply = [0; 32];
            polite.read_exact(&mut reply).await.unwrap();
        });
    }

    #[test]
    fn nonsense_from_a_server_is_an_error_and_not_a_panic(
        valid in 0usize..=VALID.len(),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        runtime().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s");
            let listener = UnixListener::bind(&path).unwrap();
            let script = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(&VALID[..valid]).await;
                let _ = stream.write_all(&noise).await;
                let _ = stream.shutdown().await;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            });
            let talk = async {
                let client = NbdClient::connect(&path, "disk", &["c".to_owned()]).await?;
                client.read(0, 512).await?;
                client.extents(|flags| flags != 0).await
            };
            let result = tokio::time::timeout(Duration::from_secs(5), talk).await.expect("it hangs");
            prop_assert!(result.is_err() || valid == VALID.len());
            script.await.unwrap();
            Ok(())
        })?;
    }
}

/// What a good server says up to the first reply: greeting, structured replies, one context, an export of 1 MiB.
const VALID: &[u8] = b"NBDMAGICIHAVEOPT\0\x03\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x08\0\0\0\x01\0\0\0\0\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0a\0\0\0\x04\0\0\0\x05\0\0\0\x01c\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0a\0\0\0\x01\0\0\0\0\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\0\0\x10\0\0\0\x01\
    \x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0";

/// One reply of a scripted server to a read of 512 bytes at 0 (cookie 1).
async fn read_with(reply: &[u8]) -> Result<Bytes, NbdError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let reply = reply.to_vec();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(VALID).await.unwrap();
        stream.write_all(&reply).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let client = NbdClient::connect(&path, "disk", &["c".to_owned()]).await?;
    assert_eq!(client.size_bytes(), MIB);
    client.read(0, 512).await
}

fn chunk(done: bool, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut message = 0x668e_33efu32.to_be_bytes().to_vec();
    message.extend_from_slice(&u16::from(done).to_be_bytes());
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&cookie.to_be_bytes());
    message.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    message.extend_from_slice(payload);
    message
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn hole(offset: u64, length: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &length.to_be_bytes()[..]].concat()
}

#[tokio::test]
async fn data_and_holes_in_any_order_make_one_answer() {
    let reply = [
        chunk(false, 1, 1, &data(256, &[9; 256])),
        chunk(true, 2, 1, &hole(0, 256)),
    ]
    .concat();
    let bytes = read_with(&reply).await.unwrap();
    assert_eq!(bytes[..256], [0; 256]);
    assert_eq!(bytes[256..], [9; 256]);
}

#[tokio::test]
async fn answers_that_do_not_fit_the_question_are_refused() {
    let bad = [
        chunk(true, 1, 1, &data(0, &[1; 511])),
        chunk(true, 1, 1, &data(1, &[1; 512])),
        chunk(true, 1, 2, &data(0, &[1; 512])),
        chunk(true, 1, 1, &data(0, &[1; 513])),
        chunk(true, 2, 1, &hole(u64::MAX, 512)),
        chunk(true, 2, 1, &hole(0, u32::MAX)),
        chunk(true, 5, 1, &[0; 12]),
        chunk(true, 0, 1, &[]),
    ];
    for reply in bad {
        assert!(
            matches!(read_with(&reply).await, Err(NbdError::Protocol(_))),
            "{reply:?}"
        );
    }
    let words = [&5u32.to_be_bytes()[..], &3u16.to_be_bytes()[..], b"bad"].concat();
    match read_with(&chunk(true, 1 << 15 | 1, 1, &words)).await {
        Err(NbdError::Command {
            code: 5, message, ..
        }) => assert_eq!(message, "bad"),
        other => panic!("{other:?}"),
    }
}

/// A scripted server that has come through the handshake, and a client that talks to it.
async fn scripted(folder: &Path) -> (UnixStream, NbdClient) {
    let path = folder.join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(VALID).await.unwrap();
        stream
    };
    let contexts = ["c".to_owned()];
    let client = NbdClient::connect(&path, "disk", &contexts);
    let (mut stream, client) = tokio::join!(server, client);
    // Flags, structured replies, one context, the export.
    let mut handshake = [0; 4 + 16 + (16 + 4 + 4 + 4 + 4 + 1) + (16 + 4 + 4 + 2)];
    stream.read_exact(&mut handshake).await.unwrap();
    (stream, client.unwrap())
}

/// Takes a request for 512 bytes; gives its cookie and what the answer is to begin with: its offset.
async fn asked(stream: &mut UnixStream) -> (u64, u64) {
    let mut message = [0; 28];
    stream.read_exact(&mut message).await.unwrap();
    assert_eq!(message[..4], 0x2560_9513u32.to_be_bytes());
    assert_eq!(message[24..], 512u32.to_be_bytes());
    let number = |at: usize| u64::from_be_bytes(message[at..at + 8].try_into().unwrap());
    (number(8), number(16))
}

/// Bytes of the block at an offset.
fn block(offset: u64) -> [u8; 512] {
    [(offset / 512) as u8 + 1; 512]
}

#[tokio::test]
async fn reads_under_way_are_answered_in_any_order_even_chunk_by_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let (mut stream, client) = scripted(folder.path()).await;
    let server = async {
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(asked(&mut stream).await);
        }
        // The first halves in one order, the second ones in another.
        for (cookie, offset) in open.iter().rev() {
            let half = chunk(false, 1, *cookie, &data(*offset, &block(*offset)[..256]));
            stream.write_all(&half).await.unwrap();
        }
        open.rotate_left(1);
        for (cookie, offset) in &open {
            let half = chunk(
                true,
                1,
                *cookie,
                &data(*offset + 256, &block(*offset)[..256]),
            );
            stream.write_all(&half).await.unwrap();
        }
    };
    let read = |offset: u64| client.read(offset, 512);
    let ((), a, b, c, d) = tokio::join!(server, read(0), read(512), read(1024), read(4096));
    for (offset, answer) in [(0, a), (512, b), (1024, c), (4096, d)] {
        assert_eq!(answer.unwrap(), block(offset)[..], "at {offset}");
    }
    assert!(client.is_usable());
}

#[tokio::test]
async fn a_read_that_fails_harms_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (mut stream, client) = scripted(folder.path()).await;
    let words = [&5u32.to_be_bytes()[..], &3u16.to_be_bytes()[..], b"bad"].concat();
    let server = async {
        let (bad, good) = (asked(&mut stream).await, asked(&mut stream).await);
        let late = asked(&mut stream).await;
        let answers = [
            // An error need not be the end of an answer.
            chunk(false, 1 << 15 | 1, bad.0, &words),
            chunk(true, 1, good.0, &data(good.1, &block(good.1))),
            chunk(true, 0, bad.0, &[]),
            chunk(true, 1, late.0, &data(late.1, &block(late.1))),
        ];
        stream.write_all(&answers.concat()).await.unwrap();
        let (cookie, offset) = asked(&mut stream).await;
        let answer = chunk(true, 1, cookie, &data(offset, &block(offset)));
        stream.write_all(&answer).await.unwrap();
    };
    let reads = async {
        let read = |offset: u64| client.read(offset, 512);
        let (bad, good, late) = tokio::join!(read(0), read(512), read(1024));
        assert!(
            matches!(&bad, Err(NbdError::Command { code: 5, message, .. }) if message == "bad"),
            "{bad:?}"
        );
        assert_eq!(good.unwrap(), block(512)[..]);
        assert_eq!(late.unwrap(), block(1024)[..]);
        assert_eq!(read(2048).await.unwrap(), block(2048)[..]);
    };
    tokio::join!(server, reads);
    assert!(client.is_usable());
}

#[tokio::test]
async fn a_read_whose_caller_has_gone_leaves_the_connection_usable() {
    let folder = tempfile::tempdir().unwrap();
    let (mut stream, client) = scripted(folder.path()).await;
    let gone = tokio::select! {
        biased;
        _ = client.read(0, 512) => panic!("nobody has answered"),
        gone = asked(&mut stream) => gone,
    };
    let server = async {
        let (cookie, offset) = asked(&mut stream).await;
        let answers = [
            chunk(true, 1, gone.0, &data(gone.1, &block(gone.1))),
            chunk(true, 1, cookie, &data(offset, &block(offset))),
        ];
        stream.write_all(&answers.concat()).await.unwrap();
    };
    let ((), answer) = tokio::join!(server, client.read(512, 512));
    assert_eq!(answer.unwrap(), block(512)[..]);
    assert!(client.is_usable());
}

#[tokio::test]
async fn a_broken_connection_fails_every_read_under_way_and_later_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (mut stream, client) = scripted(folder.path()).await;
    let server = async {
        let first = asked(&mut stream).await;
        asked(&mut stream).await;
        asked(&mut stream).await;
        // In the middle of an answer.
        let answer = chunk(true, 1, first.0, &data(first.1, &block(first.1)));
        stream.write_all(&answer[..100]).await.unwrap();
        drop(stream);
    };
    let read = |offset: u64| client.read(offset, 512);
    let ((), a, b, c) = tokio::join!(server, read(0), read(512), read(1024));
    for answer in [a, b, c, read(0).await] {
        assert!(matches!(answer, Err(NbdError::Connection(_))), "{answer:?}");
    }
    assert!(!client.is_usable());
}

#[tokio::test]
async fn nonsense_in_one_answer_ends_the_connection_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let (mut stream, client) = scripted(folder.path()).await;
    let server = async {
        let (first, _) = (asked(&mut stream).await, asked(&mut stream).await);
        let whole = chunk(true, 1, first.0, &data(first.1, &block(first.1)));
        // Its answer has come to its end already.
        stream.write_all(&whole).await.unwrap();
        stream.write_all(&whole).await.unwrap();
    };
    let ((), first, second) = tokio::join!(server, client.read(0, 512), client.read(512, 512));
    assert_eq!(first.unwrap(), block(0)[..]);
    assert!(matches!(second, Err(NbdError::Protocol(_))), "{second:?}");
    assert!(!client.is_usable());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let (_stream, client) = scripted(folder.path()).await;
    let (a, b) = tokio::join!(client.read(0, 512), client.read(512, 512));
    for answer in [a, b] {
        assert!(matches!(answer, Err(NbdError::Timeout(120))), "{answer:?}");
    }
    assert!(!client.is_usable());
}
