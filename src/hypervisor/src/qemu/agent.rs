//! A client of the guest agent: JSON lines over the socket of the VM's second serial port.
//!
//! A serial port has no connections: bytes sent before the agent opened its end are lost, and answers to somebody
//! who left are still on their way. So every conversation begins with `guest-sync-delimited`, repeated until an answer
//! bears its id; the byte 0xff in front of it makes the agent forget half a command.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout, timeout_at};

/// How often the agent is called until it answers.
const CALL_EVERY: Duration = Duration::from_secs(1);
/// Longest answer that is taken; the longest that is asked for is a number.
const MAX_LINE: u64 = 1 << 20;
/// Characters of a guest's explanation that are kept.
const MAX_WORDS: usize = 300;
/// Makes the agent's parser begin anew; it stands before the answer, too.
const DELIMITER: u8 = 0xff;

/// Why a conversation came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    /// Nobody answers.
    #[error("no guest agent answered within {} s", patience.as_secs())]
    Absent { patience: Duration },
    /// It had answered before, and did not answer this.
    #[error("the guest agent did not answer {command} in time")]
    Timeout { command: &'static str },
    /// It said no.
    #[error("the guest agent refused {command}: {description}")]
    Refused {
        command: &'static str,
        description: String,
    },
    /// The port's socket failed: the VM has ended.
    #[error("the guest agent's port")]
    Port(#[from] std::io::Error),
}

/// An agent that has answered.
#[derive(Debug)]
pub(super) struct Agent {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    line: Vec<u8>,
}

impl Agent {
    /// Calls the agent until it answers.
    pub(super) async fn call(socket: &Path, patience: Duration) -> Result<Self, AgentError> {
        let deadline = Instant::now() + patience;
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        let mut agent = Self {
            reader: BufReader::new(reader),
            writer,
            line: Vec::new(),
        };
        while Instant::now() < deadline {
            let id = uuid::Uuid::new_v4().as_u128() as u32;
            let attempt = async {
                let request =
                    json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
                agent.writer.write_all(&[DELIMITER]).await?;
                agent
                    .writer
                    .write_all(format!("{request}\n").as_bytes())
                    .await?;
                loop {
                    let answer = agent.answer().await?;
                    if answer.get("return") == Some(&json!(id)) {
                        return Ok::<(), AgentError>(());
                    }
                }
            };
            let until = deadline.min(Instant::now() + CALL_EVERY);
            if let Ok(answered) = timeout_at(until, attempt).await {
                return answered.map(|()| agent);
            }
        }
        Err(AgentError::Absent { patience })
    }

    /// Runs a command without arguments.
    pub(super) async fn execute(
        &mut self,
        command: &'static str,
        patience: Duration,
    ) -> Result<Value, AgentError> {
        let work = async {
            let request = json!({ "execute": command });
            self.writer
                .write_all(format!("{request}\n").as_bytes())
                .await?;
            self.answer().await
        };
        let mut answer = timeout(patience, work)
            .await
            .map_err(|_| AgentError::Timeout { command })??;
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(AgentError::Refused {
                command,
                description: printable(
                    answer["error"]["desc"]
                        .as_str()
                        .unwrap_or("without a reason"),
                ),
            }),
        }
    }

    /// The next line that is an answer; what is none is passed over.
    async fn answer(&mut self) -> Result<Value, AgentError> {
        loop {
            let room = MAX_LINE.saturating_sub(self.line.len() as u64);
            (&mut self.reader)
                .take(room)
                .read_until(b'\n', &mut self.line)
                .await?;
            if self.line.last() != Some(&b'\n') {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            let start = self
                .line
                .iter()
                .rposition(|byte| *byte == DELIMITER)
                .map_or(0, |at| at + 1);
            let parsed = serde_json::from_slice::<Value>(&self.line[start..]);
            self.line.clear();
            match parsed {
                Ok(value) if value.is_object() => return Ok(value),
                // What a guest says is only ever somebody else's words until it is an answer.
                _ => {}
            }
        }
    }
}

/// A guest's words in one line of bounded length, without what a terminal would act on: they get into findings, reports
/// and the operator's screen.
fn printable(text: &str) -> String {
    text.chars()
        .take(MAX_WORDS)
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// A guest whose `n`th line gets the `n`th answer; `ID` stands for the id that was asked.
    async fn guest(answers: Vec<&'static [u8]>) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let mut lines = BufReader::new(reader);
            for answer in answers {
                let mut line = Vec::new();
                lines.read_until(b'\n', &mut line).await.unwrap();
                let digits: Vec<u8> = line.iter().copied().filter(u8::is_ascii_digit).collect();
                let mut bytes = answer.to_vec();
                if let Some(at) = answer.windows(2).position(|two| two == b"ID") {
                    bytes.splice(at..at + 2, digits);
                }
                writer.write_all(&bytes).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        (folder, path)
    }

    const PATIENCE: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn answers_to_others_and_noise_are_passed_over() {
        let (_folder, path) = guest(vec![
            b"half an answer\n\xff{\"return\": 1}\n{\"error\": {\"desc\": \"stray\"}}\n\xff{\"return\": ID}\n",
            b"{\"return\": 3}\n",
            b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"the hook said no\"}}\n",
        ])
        .await;
        let mut agent = Agent::call(&path, PATIENCE).await.unwrap();
        let value = agent.execute("guest-fsfreeze-freeze", PATIENCE).await;
        assert_eq!(value.unwrap(), json!(3));
        let error = agent.execute("guest-fsfreeze-thaw", PATIENCE).await;
        assert!(error.unwrap_err().to_string().contains("the hook said no"));
    }

    #[tokio::test]
    async fn an_agent_that_comes_late_is_called_again() {
        let (_folder, path) = guest(vec![b"", b"", b"\xff{\"return\": ID}\n"]).await;
        Agent::call(&path, PATIENCE).await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_without_an_agent_is_said_to_have_none() {
        let (_folder, path) = guest(Vec::new()).await;
        let error = Agent::call(&path, SHORT).await.unwrap_err();
        assert!(matches!(error, AgentError::Absent { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_command_that_hangs_times_out() {
        let (_folder, path) = guest(vec![b"\xff{\"return\": ID}\n"]).await;
        let mut agent = Agent::call(&path, PATIENCE).await.unwrap();
        let error = agent.execute("guest-fsfreeze-freeze", SHORT).await;
        assert!(matches!(error, Err(AgentError::Timeout { .. })));
    }

    #[test]
    fn a_guests_words_are_one_line_of_bounded_length_without_escapes() {
        let hostile = format!("\u{1b}[2J\u{9b}31m\r\nno{}", "o".repeat(1 << 20));
        let words = printable(&hostile);
        assert_eq!(words.chars().count(), MAX_WORDS);
        assert!(words.starts_with(" [2J 31m  noo"), "{words:?}");
    }
}
