//! What the kernel command line asks of the guest (`lab.NAME=VALUE`).

use anyhow::Context;

use crate::record::{GuestId, MARKER_MAX_BYTES};

/// The guest's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `lab.id`: the VM's GUID.
    pub guest: GuestId,
    /// `lab.rate`: records a second, 0 = as fast as the disks take them.
    pub rate_per_second: u64,
    /// `lab.marker`: text in each record.
    pub marker: String,
    /// `lab.fill_mib`: MiB of filling written once, before the first record.
    pub fill_mib: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            guest: GuestId::default(),
            rate_per_second: 200,
            marker: String::new(),
            fill_mib: 0,
        }
    }
}

impl Options {
    /// Reads the kernel command line; words that aren't `lab.*` belong to others.
    pub fn parse(command_line: &str) -> anyhow::Result<Self> {
        let mut options = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let Some((name, value)) = word.strip_prefix("lab.").and_then(|w| w.split_once('='))
            else {
                continue;
            };
            match name {
                "id" => {
                    options.guest = GuestId::parse(value)
                        .with_context(|| format!("lab.id={value} is no GUID"))?;
                }
                "rate" => {
                    options.rate_per_second = value
                        .parse()
                        .with_context(|| format!("lab.rate={value} is no number"))?;
                }
                "fill_mib" => {
                    options.fill_mib = value
                        .parse()
                        .with_context(|| format!("lab.fill_mib={value} is no number"))?;
                }
                "marker" => {
                    anyhow::ensure!(
                        value.len() <= MARKER_MAX_BYTES,
                        "lab.marker is longer than {MARKER_MAX_BYTES} bytes"
                    );
                    value.clone_into(&mut options.marker);
                }
                _ => anyhow::bail!("unknown option lab.{name}"),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_among_the_kernels_own() {
        let options = Options::parse(
            "BOOT_IMAGE=/vmlinuz quiet lab.rate=0 lab.marker=ABC lab.fill_mib=64 console=ttyS0\n",
        )
        .expect("a good command line");
        assert_eq!(options.rate_per_second, 0);
        assert_eq!(options.marker, "ABC");
        assert_eq!(options.fill_mib, 64);
    }

    #[test]
    fn a_mistyped_option_is_refused() {
        assert!(Options::parse("lab.rate=fast").is_err());
        assert!(Options::parse("lab.speed=1").is_err());
        assert!(Options::parse("lab.id=1234").is_err());
    }
}
