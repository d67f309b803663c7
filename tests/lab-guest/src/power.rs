//! Two ways to ask the guest to end: the ACPI power button, and the line `poweroff` on COM2.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Size of the kernel's `input_event` on 64-bit machines: time (16), type (2), code (2), value (4).
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Whether someone asked the guest to end.
#[derive(Clone, Default)]
pub struct PowerRequest(Arc<AtomicBool>);

impl PowerRequest {
    /// Listens on every input device and on `channel`, if any. What can't be opened is left out: a machine
    /// without a second serial port still has the button.
    pub fn listen(input: &Path, channel: Option<&Path>) -> Self {
        let request = Self::default();
        for device in devices(input) {
            let request = request.clone();
            thread::spawn(move || request.wait_for_key(&device));
        }
        if let Some(Ok(port)) = channel.map(|path| OpenOptions::new().read(true).open(path)) {
            let request = request.clone();
            thread::spawn(move || request.wait_for_line(port));
        }
        request
    }

    /// Has someone asked?
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn wait_for_key(&self, device: &Path) {
        let Ok(mut events) = File::open(device) else {
            return;
        };
        let mut event = [0; EVENT_BYTES];
        while events.read_exact(&mut event).is_ok() {
            if is_power_key(&event) {
                self.0.store(true, Ordering::Release);
            }
        }
    }

    fn wait_for_line(&self, port: File) {
        for line in BufReader::new(port).lines().map_while(Result::ok) {
            if line.trim() == "poweroff" {
                self.0.store(true, Ordering::Release);
            }
        }
    }
}

fn devices(input: &Path) -> Vec<PathBuf> {
    fs::read_dir(input)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
        .map(|entry| entry.path())
        .collect()
}

fn is_power_key(event: &[u8; EVENT_BYTES]) -> bool {
    let half = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
    half(16) == EV_KEY && half(18) == KEY_POWER && event[20..] != [0; 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pressed_power_key_counts() {
        let mut event = [0; EVENT_BYTES];
        event[16] = 1;
        event[18] = 116;
        assert!(!is_power_key(&event), "released");
        event[20] = 1;
        assert!(is_power_key(&event));
        event[18] = 30;
        assert!(!is_power_key(&event), "another key");
    }

    #[test]
    fn the_line_poweroff_asks_for_the_end() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let channel = folder.path().join("channel");
        fs::write(&channel, "hello\npoweroff\n").expect("a temporary folder is writable");
        let request = PowerRequest::default();
        request.wait_for_line(File::open(&channel).expect("it was just written"));
        assert!(request.is_set());
    }
}
