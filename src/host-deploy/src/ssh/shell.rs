//! Scripts for the host's `/bin/sh`: quoted so that any path arrives as it is, and whole or not at all.
//!
//! A script goes over standard input as one function and its call as one group, which the shell runs only once it has read
//! the end: a connection that is cut in the middle makes a syntax error, not half of the work or work with half of its arguments.

use std::path::Path;

use crate::error::{DeployError, DeployErrorKind};

/// Begins what a script prints: what login shells print before it is not the script's.
pub(crate) const BEGINS: &str = "siterecovery-output-begins\n";

/// What came behind [`BEGINS`].
pub(crate) fn of_script(out: &[u8]) -> Option<&[u8]> {
    let mark = BEGINS.as_bytes();
    let at = out.windows(mark.len()).position(|part| part == mark)?;
    out.get(at + mark.len()..)
}

/// One word for `sh`, whatever is in it.
pub(crate) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The text of a program with its arguments; its commands read nothing.
pub(crate) fn program(script: &str, arguments: &[&str]) -> Result<String, DeployError> {
    Ok(format!(
        "{} </dev/null\nexit $?\n}}\n",
        called(script, arguments)?
    ))
}

/// The same for one that reads until the connection is closed.
pub(crate) fn holding_program(script: &str, arguments: &[&str]) -> Result<String, DeployError> {
    Ok(format!("{}\nexit $?\n}}\n", called(script, arguments)?))
}

fn called(script: &str, arguments: &[&str]) -> Result<String, DeployError> {
    let mut text = format!(
        "siterecovery_step() {{\nLC_ALL=C\nPATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin\nexport LC_ALL PATH\n\
         umask 077\n{script}\n}}\n{{\nprintf '\\n%s\\n' {}\nsiterecovery_step",
        BEGINS.trim_end()
    );
    for argument in arguments {
        if argument.contains('\0') {
            return Err(DeployError::new(
                DeployErrorKind::InvalidPath,
                "passing on",
                format!("{argument:?}"),
                "a NUL can't be part of a path",
                "use another name",
            ));
        }
        text.push(' ');
        text.push_str(&quote(argument));
    }
    Ok(text)
}

/// A path as text.
pub(crate) fn path(path: &Path) -> Result<&str, DeployError> {
    path.to_str().ok_or_else(|| {
        DeployError::new(
            DeployErrorKind::InvalidPath,
            "passing on",
            path.display().to_string(),
            "it is not valid UTF-8",
            "use folder names that are valid UTF-8",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn sh(input: &str) -> (bool, Vec<u8>) {
        let mut child = Command::new("/bin/sh")
            .arg("-s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), output.stdout)
    }

    /// What the script itself prints.
    fn said(out: &[u8]) -> Vec<u8> {
        of_script(out).unwrap().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_word_arrives_as_it_is(words in prop::collection::vec("[^\\x00]{0,24}|[ '\"\\\\$`!*\n;&|<>(){}#~-]{1,12}", 0..5)) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let text = program("for word; do printf '%s\\0' \"$word\"; done", &words).unwrap();
            let (success, out) = sh(&text);
            let expected: String = words.iter().flat_map(|word| [*word, "\0"]).collect();
            prop_assert!(success);
            prop_assert_eq!(String::from_utf8(said(&out)).unwrap(), expected);
        }
    }

    #[test]
    fn a_script_that_was_cut_does_nothing() {
        let text = program("echo begun\necho done", &["a word", "it's"]).unwrap();
        // The last byte is the end of the line behind the closing brace.
        for cut in 0..text.len() - 2 {
            let (_, out) = sh(&text[..cut]);
            assert!(out.is_empty(), "cut at {cut}");
        }
        assert_eq!(said(&sh(&text).1), b"begun\ndone\n");
    }

    #[test]
    fn what_a_login_shell_prints_is_not_the_scripts() {
        let text = program("echo begun", &[]).unwrap();
        let noisy = [b"Welcome\nto hv1".to_vec(), sh(&text).1].concat();
        assert_eq!(said(&noisy), b"begun\n");
        assert_eq!(of_script(b"Welcome\n"), None);
        assert_eq!(said(&sh(&program("true", &[]).unwrap()).1), b"");
    }

    #[test]
    fn a_nul_is_refused() {
        assert!(program("true", &["a\0b"]).is_err());
    }
}
