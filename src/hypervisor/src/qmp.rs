//! A small client of QEMU's machine protocol: JSON lines over a Unix socket.
//!
//! One command at a time; events that arrive meanwhile are kept. QEMU serves one connection of a socket at
//! a time, so a client is made for one piece of work and dropped after it: then a new process can connect
//! after the old one crashed.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::trace;
use uuid::Uuid;

/// Longest line that is taken: a VM with hundreds of nodes answers in less than one megabyte.
const MAX_LINE: u64 = 16 << 20;
/// Events kept for a caller that waits later; the oldest go first.
const MAX_EVENTS: usize = 4096;
/// Time for one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// What may go wrong on a QMP connection.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens on the socket.
    #[error("qmp socket {path}")]
    Connect {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke; QEMU has most likely ended.
    #[error("qmp connection broke during {step}")]
    Connection {
        /// Command or phase.
        step: String,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("qemu did not answer {step} in time")]
    Timeout {
        /// Command or phase.
        step: String,
    },
    /// QEMU answered with an error.
    #[error("qemu refused {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class, such as "GenericError" or "DeviceNotFound".
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// An answer that is not QMP.
    #[error("not a qmp answer during {step}: {problem}")]
    Protocol {
        /// Command or phase.
        step: String,
        /// What was wrong.
        problem: String,
    },
}

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    events: VecDeque<Event>,
    /// Kept between calls: a read that timed out leaves the beginning of a line here.
    line: Vec<u8>,
    /// In the id of each command. QEMU writes the answer to a command of a connection that has gone meanwhile to the
    /// one that is there now: numbers alone, which begin anew with each connection, would take it for their own.
    connection: Uuid,
    next_id: u64,
}

/// An event of QEMU.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Such as `BLOCK_EXPORT_DELETED`.
    pub name: String,
    /// Its data; null when it has none.
    pub data: Value,
}

impl Qmp {
    /// Connects and negotiates; waits up to `patience` for another client to leave.
    ///
    /// # Errors
    /// [`QmpError::Connect`] when QEMU is gone, [`QmpError::Timeout`] when another client stays.
    pub async fn connect(socket: &Path, patience: Duration) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| QmpError::Connect {
                path: socket.to_owned(),
                source,
            })?;
        let (reader, writer) = stream.into_split();
        let mut qmp = Self {
            reader: BufReader::new(reader),
            writer,
            events: VecDeque::new(),
            line: Vec::new(),
            connection: Uuid::new_v4(),
            next_id: 1,
        };
        let greeting = timeout(patience, qmp.message("greeting"))
            .await
            .map_err(|_| QmpError::Timeout {
                step: "greeting".to_owned(),
            })??;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Protocol {
                step: "greeting".to_owned(),
                problem: "no QMP greeting".to_owned(),
            });
        }
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Runs a command and gives its `return` value. `arguments` is an object, or null for none.
    ///
    /// # Errors
    /// [`QmpError::Refused`] with QEMU's class and words; others when the connection is no longer usable.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let id = format!("{}.{}", self.connection.simple(), self.next_id);
        self.next_id += 1;
        let mut request = json!({ "execute": command, "id": &id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut line = request.to_string();
        trace!(command, "qmp");
        line.push('\n');
        let work = async {
            self.writer
                .write_all(line.as_bytes())
                .await
                .map_err(|source| QmpError::Connection {
                    step: command.to_owned(),
                    source,
                })?;
            self.answer(command, &id).await
        };
        timeout(COMMAND_TIMEOUT, work).await.unwrap_or_else(|_| {
            Err(QmpError::Timeout {
                step: command.to_owned(),
            })
        })
    }

    async fn answer(&mut self, command: &str, id: &str) -> Result<Value, QmpError> {
        loop {
            let mut message = self.message(command).await?;
            if self.keep_event(&message) {
                continue;
            }
            // An answer to a command whose caller gave up belongs to nobody; QEMU can't name the id of a command that
            // it could not parse, and we have one command on the way at a time.
            if message.get("id").is_some_and(|echoed| echoed != id) {
                continue;
            }
            if let Some(error) = message.get("error") {
                let text = |field: &str| {
                    error
                        .get(field)
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned()
                };
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    class: text("class"),
                    description: text("desc"),
                });
            }
            return match message.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(QmpError::Protocol {
                    step: command.to_owned(),
                    problem: "neither return nor error".to_owned(),
                }),
            };
        }
    }

    /// Waits for the next event of which `wanted` says yes; others that arrive before it stay for later calls.
    ///
    /// # Errors
    /// [`QmpError::Timeout`] when it does not come.
    pub async fn wait_event(
        &mut self,
        wanted: impl Fn(&Event) -> bool,
        patience: Duration,
    ) -> Result<Event, QmpError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(event) = self
                .events
                .iter()
                .position(&wanted)
                .and_then(|index| self.events.remove(index))
            {
                return Ok(event);
            }
            let message = timeout_at(deadline, self.message("event"))
                .await
                .map_err(|_| QmpError::Timeout {
                    step: "event".to_owned(),
                })??;
            self.keep_event(&message);
        }
    }

    /// Forgets the events that have arrived, so that a following wait sees only new ones.
    pub fn drop_events(&mut self) {
        self.events.clear();
    }

    fn keep_event(&mut self, message: &Value) -> bool {
        let Some(name) = message.get("event").and_then(Value::as_str) else {
            return false;
        };
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        let data = message.get("data").cloned().unwrap_or_default();
        self.events.push_back(Event {
            name: name.to_owned(),
            data,
        });
        true
    }

    async fn message(&mut self, step: &str) -> Result<Value, QmpError> {
        let broken = |source| QmpError::Connection {
            step: step.to_owned(),
            source,
        };
        let room = MAX_LINE.saturating_sub(self.line.len() as u64);
        (&mut self.reader)
            .take(room)
            .read_until(b'\n', &mut self.line)
            .await
            .map_err(broken)?;
        if self.line.last() != Some(&b'\n') {
            return Err(if self.line.len() as u64 >= MAX_LINE {
                QmpError::Protocol {
                    step: step.to_owned(),
                    problem: "line too long".to_owned(),
                }
            } else {
                broken(io::ErrorKind::UnexpectedEof.into())
            });
        }
        let parsed = serde_json::from_slice(&self.line).map_err(|error| QmpError::Protocol {
            step: step.to_owned(),
            problem: error.to_string(),
        });
        self.line.clear();
        parsed
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// A QEMU that says `lines` after each line it gets, and first the greeting; `ID` in them is the id of what it got.
    async fn fake(lines: Vec<&'static [u8]>) -> (tempfile::TempDir, Result<Qmp, QmpError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let mut requests = BufReader::new(reader).lines();
            let mut lines = lines.into_iter();
            writer
                .write_all(lines.next().unwrap_or_default())
                .await
                .unwrap();
            for line in lines {
                if let Ok(Some(request)) = requests.next_line().await {
                    let request: Value = serde_json::from_str(&request).unwrap();
                    writer.write_all(&answer_to(&request, line)).await.unwrap();
                }
            }
        });
        let qmp = Qmp::connect(&path, Duration::from_secs(5)).await;
        (folder, qmp)
    }

    fn answer_to(request: &Value, line: &[u8]) -> Vec<u8> {
        match std::str::from_utf8(line) {
            Ok(text) => text.replace("ID", &request["id"].to_string()).into_bytes(),
            Err(_) => line.to_vec(),
        }
    }

    const HELLO: &[u8] = b"{\"QMP\": {}}\r\n";
    const YES: &[u8] = b"{\"return\": {}, \"id\": ID}\r\n";

    #[tokio::test]
    async fn events_before_an_answer_are_kept_in_order() {
        let answer =
            b"{\"event\":\"A\",\"data\":{\"x\":1}}\n{\"event\":\"B\"}\n{\"return\":7,\"id\":ID}\n";
        let (_folder, qmp) = fake(vec![HELLO, YES, answer]).await;
        let mut qmp = qmp.unwrap();
        assert_eq!(qmp.execute("x", Value::Null).await.unwrap(), json!(7));
        let second = qmp
            .wait_event(|event| event.name == "B", Duration::from_secs(1))
            .await
            .unwrap();
        assert_eq!(second.data, Value::Null);
        let first = qmp
            .wait_event(|event| event.name == "A", Duration::from_secs(1))
            .await
            .unwrap();
        assert_eq!(first.data, json!({"x": 1}));
    }

    #[tokio::test]
    async fn an_error_keeps_class_and_words() {
        let answer =
            b"{\"id\":ID,\"error\":{\"class\":\"DeviceNotFound\",\"desc\":\"no such thing\"}}\n";
        let (_folder, qmp) = fake(vec![HELLO, YES, answer]).await;
        match qmp.unwrap().execute("x", json!({"a": 1})).await {
            Err(QmpError::Refused {
                command,
                class,
                description,
            }) => {
                assert_eq!((command.as_str(), class.as_str()), ("x", "DeviceNotFound"));
                assert_eq!(description, "no such thing");
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_answer_to_a_command_of_an_earlier_connection_is_passed_over() {
        let answer =
            b"{\"return\":1,\"id\":2}\n{\"return\":1,\"id\":\"f.2\"}\n{\"return\":2,\"id\":ID}\n";
        let (_folder, qmp) = fake(vec![HELLO, YES, answer]).await;
        assert_eq!(
            qmp.unwrap().execute("x", Value::Null).await.unwrap(),
            json!(2)
        );
    }

    #[tokio::test]
    async fn nonsense_and_a_broken_line_are_errors() {
        let (_folder, qmp) = fake(vec![HELLO, YES, b"\xff\xfe nonsense\n"]).await;
        assert!(matches!(
            qmp.unwrap().execute("x", Value::Null).await,
            Err(QmpError::Protocol { .. })
        ));
        let (_folder, qmp) = fake(vec![HELLO, YES, b"{\"ret"]).await;
        assert!(matches!(
            qmp.unwrap().execute("x", Value::Null).await,
            Err(QmpError::Connection { .. })
        ));
        let (_folder, qmp) = fake(vec![b"SSH-2.0\n"]).await;
        assert!(matches!(qmp, Err(QmpError::Protocol { .. })));
    }
}
