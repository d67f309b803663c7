//! A JSON value for people: `key: value` lines, lists indented.

use std::fmt::Write as _;

use serde_json::Value;

/// The value as text.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    render(&mut out, value, 0);
    out
}

fn render(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::Array(list) => {
                        writeln!(out, "{indent}{key}: {}", list.len()).ok();
                        for item in list {
                            render(out, item, depth + 1);
                        }
                    }
                    Value::Object(_) => {
                        writeln!(out, "{indent}{key}:").ok();
                        render(out, value, depth + 1);
                    }
                    other => {
                        writeln!(out, "{indent}{key}: {}", plain(key, other)).ok();
                    }
                }
            }
            if depth > 0 {
                writeln!(out).ok();
            }
        }
        other => {
            writeln!(out, "{indent}{}", plain("", other)).ok();
        }
    }
}

/// Sizes also as people say them.
fn plain(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Number(number) => match number.as_u64() {
            Some(bytes) if bytes >= 1 << 20 && key.ends_with("Bytes") => {
                format!("{bytes} ({})", crate::progress::human_bytes(bytes))
            }
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_become_lines() {
        let value = json!({
            "kind": "disk image",
            "fileSizeBytes": 3u64 << 30,
            "disks": [{ "id": "a" }],
            "parent": null,
        });
        let shown = text(&value);
        assert!(shown.contains("kind: disk image\n"), "{shown}");
        assert!(
            shown.contains("fileSizeBytes: 3221225472 (3.0 GiB)\n"),
            "{shown}"
        );
        assert!(shown.contains("disks: 1\n  id: a\n"), "{shown}");
        assert!(shown.contains("parent: -\n"), "{shown}");
    }
}
