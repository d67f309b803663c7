//! Progress bars of the tools: on a terminal a bar on standard error, otherwise silence.

use std::fmt::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// A bar that counts bytes; `total` 0 = unknown. Hidden when standard error is no terminal.
pub fn bytes(label: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    bar.set_style(byte_style());
    bar.set_prefix(label.to_owned());
    bar
}

/// A bar for work whose length nobody knows.
pub fn spinner(label: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(label.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn byte_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix:24!} [{bar:30}] {bytes:>10}/{total_bytes:10} {rate:>12} {remaining:>6} {msg}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .with_key(
        "rate",
        |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            out.write_fmt(format_args!("{}/s", human_bytes(state.per_sec() as u64)))
                .ok();
        },
    )
    .with_key(
        "remaining",
        |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            out.write_str(&human_duration(state.eta())).ok();
        },
    )
    .progress_chars("=> ")
}

/// Such as `1.5 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let mut text = String::new();
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    write!(text, "{value:.digits$} {}", UNITS[unit]).ok();
    text
}

/// Such as `2h05m`, `3m10s`, `7s`.
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A number of bytes as people write it: `4096`, `64K`, `1.5GiB`.
///
/// # Errors
/// Says what it should look like.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no size; write one like 4096, 64K, 512M or 1.5GiB"))?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        other => {
            return Err(format!(
                "unit {other:?} of {text:?} is none of K, M, G, T (powers of 1024)"
            ));
        }
    };
    Ok((number * factor as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("64K"), Ok(65_536));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(3 << 29));
        assert!(parse_bytes("many").is_err());
        assert!(parse_bytes("3 bananas").is_err());
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(200 << 20), "200 MiB");
        assert_eq!(human_duration(Duration::from_secs(7)), "7s");
        assert_eq!(human_duration(Duration::from_secs(190)), "3m10s");
        assert_eq!(human_duration(Duration::from_secs(7500)), "2h05m");
    }

    #[test]
    fn bars_can_be_made_without_a_terminal() {
        let bar = bytes("copy", 10);
        bar.inc(5);
        bar.finish_and_clear();
        spinner("wait").finish_and_clear();
    }
}
