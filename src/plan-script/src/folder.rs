//! Where scripts may come from: one folder, and nothing outside of it, not even by a link.

use std::path::{Component, Path, PathBuf};

/// Why a script is not run. Each text ends with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No folder is configured.
    #[error("no scripts run here: set `scripts_folder` to the folder that they may come from")]
    NoFolder,
    /// The path is no path inside of a folder.
    #[error("{0:?} leaves the scripts folder: name a file inside of it, such as \"web/check.sh\"")]
    Outside(String),
    /// It can't be opened.
    #[error("{0:?} can't be used ({1}): put it into the scripts folder")]
    Missing(String, String),
    /// It is not to be run.
    #[error("{0:?} is no executable file: `chmod +x` it")]
    NotExecutable(String),
}

/// A path inside of a folder, as plans name it. Both kinds of slashes separate; a leading one is left out, as ASR's paths
/// have it.
///
/// # Errors
/// When it is empty or leaves the folder.
pub fn relative(path: &str) -> Result<PathBuf, Refusal> {
    let outside = || Refusal::Outside(path.to_owned());
    let text = path.replace('\\', "/");
    let path = Path::new(&text);
    if text.is_empty() || text.contains('\0') || path.is_absolute() {
        return Err(outside());
    }
    path.components()
        .map(|part| match part {
            Component::Normal(part) => Ok(part),
            _ => Err(outside()),
        })
        .collect()
}

/// The file to run.
///
/// # Errors
/// See [`Refusal`].
pub(crate) fn resolve(folder: Option<&Path>, path: &str) -> Result<PathBuf, Refusal> {
    let folder = folder.ok_or(Refusal::NoFolder)?;
    let relative = relative(path)?;
    let missing = |error: std::io::Error| Refusal::Missing(path.to_owned(), error.to_string());
    let folder = std::fs::canonicalize(folder).map_err(missing)?;
    let file = std::fs::canonicalize(folder.join(relative)).map_err(missing)?;
    if !file.starts_with(&folder) {
        return Err(Refusal::Outside(path.to_owned()));
    }
    let facts = std::fs::metadata(&file).map_err(missing)?;
    if !facts.is_file() || !is_executable(&facts) {
        return Err(Refusal::NotExecutable(path.to_owned()));
    }
    Ok(file)
}

#[cfg(unix)]
fn is_executable(facts: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    facts.permissions().mode() & 0o111 != 0
}

/// Files have no such mark there.
#[cfg(not(unix))]
fn is_executable(_facts: &std::fs::Metadata) -> bool {
    true
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn no_path_leaves_the_folder() {
        for path in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "\\\\server\\x",
            "a\0b",
        ] {
            assert!(
                matches!(relative(path), Err(Refusal::Outside(_))),
                "{path:?}"
            );
        }
        assert_eq!(relative("web\\check.sh"), Ok(PathBuf::from("web/check.sh")));
    }

    #[test]
    fn a_link_out_of_the_folder_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("scripts");
        std::fs::create_dir(&folder).unwrap();
        let target = outer.path().join("evil.sh");
        std::fs::write(&target, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&target, folder.join("link.sh")).unwrap();
        assert_eq!(
            resolve(Some(&folder), "link.sh"),
            Err(Refusal::Outside("link.sh".to_owned()))
        );
        std::fs::write(folder.join("plain.txt"), "").unwrap();
        assert!(matches!(
            resolve(Some(&folder), "plain.txt"),
            Err(Refusal::NotExecutable(_))
        ));
        assert_eq!(resolve(None, "x"), Err(Refusal::NoFolder));
    }
}
