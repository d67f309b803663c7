//! Evidence for the report of a drill or a failover: what the display of its VM shows, and the end of its console.
//!
//! ```text
//!  start ─── 1 min ── 5 min ── 14 min ──►   looks, while the guest has written nothing
//!  first output ─── 3 s ── 30 s ── 2 min ── 10 min ──►  looks after that
//!  all that was asked has answered ── 2 s ── 1 min ──►  looks at a guest that is up; the last one that differs stands
//! ```
//!
//! Promise: a few looks, whatever happens, each bounded in time and size; none of them can end or change the VM. What was
//! seen is told until the orchestrator has acknowledged it ([`crate::board::Board::add_evidence`]).

use std::convert::Infallible;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine_protocol::v1::Evidence;
use hypervisor::VmId;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::record::Record;
use super::{POWER_POLL, RecoveryHost, readiness};
use crate::engine::now_unix_ms;
use crate::task::{blocking, spawn_named};

/// Largest picture that is told; a larger one is made smaller.
const MAX_PNG_BYTES: usize = 256 << 10;
/// Longest piece of console text that is told.
const MAX_CONSOLE_BYTES: usize = 4 << 10;
/// Read of the console file: control sequences take room that the text does not.
const CONSOLE_READ_BYTES: u64 = 32 << 10;
/// A hypervisor that does not answer must not keep the VM from being watched.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// Looks after the first output: boot loader, start of services, login, a slow guest's login.
const AFTER_OUTPUT_MS: [i64; 4] = [3_000, 30_000, 120_000, 600_000];
/// Looks after the guest's agent and ports have answered, as far as they were asked.
const AFTER_READY_MS: [i64; 2] = [2_000, 60_000];
/// Looks after the start, as long as there is no output; the last one before a drill gives a VM up.
const AFTER_START_MS: [i64; 3] = [60_000, 300_000, 840_000];

/// The looks at one VM.
pub(super) struct Looks {
    taken: usize,
    /// When everything that was asked had answered; 0 = not yet, or nothing is asked.
    ready_unix_ms: i64,
    seen: String,
}

/// Looks at a VM beside everything else that is done with it, for as long as it lives.
pub(super) struct Watch {
    record: watch::Sender<Record>,
    _task: AbortOnDropHandle<Option<()>>,
}

impl Watch {
    /// `received`: as of [`Looks::new`].
    pub(super) fn start(
        host: Arc<RecoveryHost>,
        record: Record,
        console: PathBuf,
        received: bool,
    ) -> Self {
        let name = format!("look at recovered {}", record.id);
        let (record, known) = watch::channel(record);
        let task = spawn_named(name, async move {
            match follow(&host, known, &console, received).await {}
        });
        Self {
            record,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// What is known of the VM now.
    pub(super) fn tell(&self, record: &Record) {
        self.record.send_if_modified(|known| {
            let differs = known != record;
            if differs {
                known.clone_from(record);
            }
            differs
        });
    }
}

async fn follow(
    host: &RecoveryHost,
    known: watch::Receiver<Record>,
    console: &Path,
    received: bool,
) -> Infallible {
    let mut looks = Looks::new(&known.borrow().clone(), received);
    loop {
        let record = known.borrow().clone();
        looks.look(host, &record, console).await;
        tokio::time::sleep(POWER_POLL).await;
    }
}

impl Looks {
    /// `received`: the orchestrator has evidence already, so looks that were due before this engine came are not made up for.
    pub(super) fn new(record: &Record, received: bool) -> Self {
        Self {
            taken: if received {
                due(record, 0, now_unix_ms())
            } else {
                0
            },
            ready_unix_ms: 0,
            seen: String::new(),
        }
    }

    /// Looks, if it is time to.
    pub(super) async fn look(&mut self, host: &RecoveryHost, record: &Record, console: &Path) {
        if self.ready_unix_ms == 0 {
            // Kept here: what was asked is not asked any more when its action is over.
            self.ready_unix_ms = readiness::answered_unix_ms(host, record.id);
        }
        let due = due(record, self.ready_unix_ms, now_unix_ms());
        if due <= self.taken {
            return;
        }
        self.taken = due;
        let evidence = take(host, record, console).await;
        if evidence.id != self.seen {
            self.seen.clone_from(&evidence.id);
            host.board.add_evidence(evidence);
        }
    }
}

/// How many looks are due by `now_ms`.
fn due(record: &Record, ready: i64, now_ms: i64) -> usize {
    let passed = |since: i64, until: i64, after: &[i64]| {
        let gone = until.saturating_sub(since);
        after.iter().filter(|delay| **delay <= gone).count()
    };
    let (start, output) = (record.started_unix_ms, record.first_output_unix_ms);
    let up = match ready {
        0 => 0,
        ready => passed(ready, now_ms, &AFTER_READY_MS),
    };
    match (start, output) {
        (0, _) => 0,
        (_, 0) => up + passed(start, now_ms, &AFTER_START_MS),
        _ => up + passed(start, output, &AFTER_START_MS) + passed(output, now_ms, &AFTER_OUTPUT_MS),
    }
}

async fn take(host: &RecoveryHost, record: &Record, console: &Path) -> Evidence {
    let mut problems = Vec::new();
    let picture = host.hypervisor.screenshot(VmId(record.id));
    let screenshot_png = match tokio::time::timeout(LOOK_LIMIT, picture).await {
        Ok(Ok(picture)) => {
            let bytes = picture.png().len();
            let small = blocking(move || {
                picture
                    .within(MAX_PNG_BYTES)
                    .ok_or(io::ErrorKind::InvalidData.into())
            });
            match small.await {
                Ok(picture) => picture.png().to_vec(),
                Err(error) => {
                    let error: io::Error = error;
                    tracing::warn!(vm = %record.id, bytes, %error, "a picture of the display can't be made smaller");
                    problems.push(format!(
                        "the picture of the display has {bytes} bytes and can't be made smaller; at most {MAX_PNG_BYTES} are kept"
                    ));
                    Vec::new()
                }
            }
        }
        Ok(Err(error)) => {
            tracing::warn!(vm = %record.id, ?error, "no picture of the display");
            problems.push("the hypervisor gave no picture of the display".to_owned());
            Vec::new()
        }
        Err(_) => {
            problems.push("the hypervisor gave no picture of the display in time".to_owned());
            Vec::new()
        }
    };
    let file = console.to_owned();
    let console_tail = match blocking(move || end_of(file)).await {
        Ok(bytes) => plain_tail(&bytes),
        Err(error) => {
            problems.push(format!("the console can't be read: {}", error.kind()));
            String::new()
        }
    };
    let problem = problems.join("; ");
    Evidence {
        vm_id: record.id.to_string(),
        id: digest(&[&screenshot_png, console_tail.as_bytes(), problem.as_bytes()]),
        taken_unix_ms: now_unix_ms(),
        screenshot_png,
        console_tail,
        problem,
    }
}

fn digest(parts: &[&[u8]]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let digest = context.finish();
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn end_of(file: PathBuf) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_READ_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(CONSOLE_READ_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The end of console output as plain lines: control sequences and characters go, one that moves the cursor to another line
/// ends the line, and blank lines that follow each other become one.
fn plain_tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' if characters.peek() == Some(&'[') => {
                characters.next();
                // Control sequence: parameters, then one final byte (ECMA-48, section 5.4).
                let end = characters.find(|end| ('\u{40}'..='\u{7e}').contains(end));
                if matches!(end, Some('H' | 'f' | 'E' | 'B' | 'J')) {
                    plain.push('\n');
                }
            }
            '\u{1b}' => {
                characters.next();
            }
            '\n' => plain.push('\n'),
            '\t' => plain.push(' '),
            // Marks that turn the direction of what follows would let a guest disguise text.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            other if other.is_control() => {}
            other => plain.push(other),
        }
    }
    let mut lines: Vec<&str> = plain.lines().map(str::trim_end).collect();
    lines.dedup_by(|next, before| next.is_empty() && before.is_empty());
    let plain = lines.join("\n");
    let plain = plain.trim_matches('\n');
    let mut from = plain.len().saturating_sub(MAX_CONSOLE_BYTES);
    while !plain.is_char_boundary(from) {
        from += 1;
    }
    plain.get(from..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn record(started: i64, output: i64) -> Record {
        let mut record = Record::new(
            Uuid::nil(),
            "vm".into(),
            "/s".into(),
            "v".into(),
            "i".into(),
        );
        (record.started_unix_ms, record.first_output_unix_ms) = (started, output);
        record
    }

    #[test]
    fn looks_follow_the_first_output_and_a_silent_vm_is_looked_at_before_it_is_given_up() {
        let due = |record: &Record, now| due(record, 0, now);
        assert_eq!(due(&record(0, 0), 1_000_000_000), 0, "not started");
        let silent = record(1_000, 0);
        let of_silent = [60_999, 61_000, 301_000, 841_000].map(|now| due(&silent, now));
        assert_eq!(of_silent, [0, 1, 2, 3]);
        let quick = record(1_000, 2_000);
        let of_quick = [4_999, 5_000, 32_000, 122_000, 9_000_000].map(|now| due(&quick, now));
        assert_eq!(of_quick, [0, 1, 2, 3, 4]);
        // Output after the first look at a silent VM: none is made twice, none is left out.
        assert_eq!(due(&record(1_000, 70_000), 73_000), 2);
    }

    #[test]
    fn a_guest_that_is_up_is_looked_at_again_and_later_once_more() {
        let up = |now| due(&record(1_000, 2_000), 400_000, now);
        assert_eq!([401_999, 402_000, 459_999, 460_000].map(up), [3, 4, 4, 5]);
        // Also one that writes nothing to its console.
        assert_eq!(due(&record(1_000, 0), 40_000, 42_000), 1);
    }

    #[test]
    fn a_console_becomes_plain_lines() {
        let console = b"\x1b[2J\x1b[01;01HBdsDxe: loading\x07\x00\r\n\r\n\r\n\x1b[1;32mlogin:\x1b[0m \xff\xe2\x80\xaeevil\r\n";
        assert_eq!(
            plain_tail(console),
            "BdsDxe: loading\n\nlogin: \u{fffd}evil"
        );
    }

    #[test]
    fn only_the_end_of_a_long_console_is_told() {
        let console = "ä".repeat(10_000) + "end";
        let tail = plain_tail(console.as_bytes());
        assert!(tail.len() <= MAX_CONSOLE_BYTES && tail.ends_with("ääend"));
    }

    proptest! {
        #[test]
        fn whatever_a_guest_writes_is_told_bounded_and_without_control_characters(bytes in prop::collection::vec(any::<u8>(), 0..9_000)) {
            let tail = plain_tail(&bytes);
            prop_assert!(tail.len() <= MAX_CONSOLE_BYTES);
            prop_assert!(tail.chars().all(|character| character == '\n' || !character.is_control()));
        }
    }
}
