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
    /// `lab.bench`: seconds of a round of the write benchmark, which then runs in place of stamping; 0 = none.
    pub bench_seconds: u32,
    /// `lab.bench_mib`: MiB that the benchmark writes in.
    pub bench_mib: u32,
    /// `lab.agent`: COM2 belongs to the guest agent.
    pub agent: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            guest: GuestId::default(),
            rate_per_second: 200,
            marker: String::new(),
            fill_mib: 0,
            bench_seconds: 0,
            bench_mib: 64,
            agent: false,
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
                "bench" => {
                    options.bench_seconds = value
                        .parse()
                        .with_context(|| format!("lab.bench={value} is no number"))?;
                }
                "bench_mib" => {
                    options.bench_mib = value
                        .parse()
                        .with_context(|| format!("lab.bench_mib={value} is no number"))?;
                }
                "agent" => options.agent = value == "1",
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
            "BOOT_IMAGE=/vmlinuz quiet lab.rate=0 lab.marker=ABC lab.fill_mib=64 lab.bench=10 lab.agent=1 console=ttyS0\n",
        )
        .expect("a good command line");
        assert_eq!(options.rate_per_second, 0);
        assert_eq!(options.marker, "ABC");
        assert_eq!(options.fill_mib, 64);
        assert_eq!((options.bench_seconds, options.bench_mib), (10, 64));
        assert!(options.agent);
    }

    #[test]
    fn a_mistyped_option_is_refused() {
        assert!(Options::parse("lab.rate=fast").is_err());
        assert!(Options::parse("lab.speed=1").is_err());
        assert!(Options::parse("lab.id=1234").is_err());
    }
}
