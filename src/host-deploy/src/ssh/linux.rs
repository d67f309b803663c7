//! What is done on a Linux host, as scripts for any POSIX shell with coreutils or BusyBox. Pure text; `mod.rs` decides
//! which of them runs when. A host of another kind gets a module beside this one.
//!
//! Scripts print facts as `name=value` lines, or paths that end in NUL; errors go to standard error in the words of the
//! C locale, which [`fault`] reads.

use std::collections::BTreeMap;

use super::session::Ended;
use crate::error::{DeployError, DeployErrorKind};
use crate::record::DATA;

/// Folders that tell of systemd, and hold its units.
#[derive(Debug, Clone)]
pub(crate) struct SystemdFolders {
    pub(crate) runs: String,
    pub(crate) units: String,
}

impl Default for SystemdFolders {
    fn default() -> Self {
        SystemdFolders {
            runs: "/run/systemd/system".to_owned(),
            units: "/etc/systemd/system".to_owned(),
        }
    }
}

/// engine, configuration, folder that tells of systemd, folder of units.
pub(crate) const PROBE: &str = r#"
printf 'system=%s\nmachine=%s\n' "$(uname -s)" "$(uname -m)"
if [ "$(id -u)" = 0 ] && [ -d "$3" ] && [ -d "$4" ] && command -v systemctl >/dev/null; then
  printf 'systemd=yes\n'
fi
if [ -e "$1.previous" ] || [ -e "$2.previous" ]; then printf 'unconfirmed=yes\n'; fi
[ -f "$1" ] || return 0
sum=$(sha256sum <"$1") || return 1
printf 'sha256=%s\n' "${sum%% *}"
if words=$("$1" --version 2>/dev/null); then printf 'version=%s\n' "$words" | head -n 1; fi
if [ -f "$2" ] && "$1" status --config "$2" >/dev/null 2>&1; then printf 'running=yes\n'; fi
return 0
"#;

/// Seconds to wait, seconds to live. Holds the lock of this host's deployments, a lock of the kernel on the user's home, until its
/// input ends or no line has come for that long: a client that lost its power says no good-bye.
pub(crate) const LOCK: &str = r#"
command -v flock >/dev/null || { echo 'flock: not found' >&2; return 127; }
home=${HOME:-/}
if [ ! -d "$home" ] || [ ! -r "$home" ]; then home=/; fi
exec 9<"$home" || return 1
waited=0
while :; do
  flock -n 9
  case $? in 0) break ;; 1) ;; *) echo "flock: can't lock $home" >&2; return 1 ;; esac
  if [ "$waited" -ge "$1" ]; then return 75; fi
  waited=$((waited + 1))
  sleep 1
done
echo locked
while timeout "$2" sh -c 'IFS= read -r beat'; do :; done
"#;

/// Pairs of mode and folder. Makes each with what is missing above it, and prints what it made.
pub(crate) const FOLDERS: &str = r#"
siterecovery_folder() {
  if [ -d "$2" ]; then return 0; fi
  if [ -e "$2" ] || [ -L "$2" ]; then echo "$2: Not a directory" >&2; return 1; fi
  siterecovery_folder 755 "$(dirname -- "$2")" || return 1
  mkdir -m "$1" -- "$2" || return 1
  printf '%s\0' "$2"
}
while [ $# -ge 2 ]; do
  siterecovery_folder "$1" "$2" || return 1
  shift 2
done
"#;

/// A file and a count of bytes: the hash of so much of its beginning.
pub(crate) const HASH: &str = r#"
sum=$(head -c "$2" <"$1" | sha256sum) || return 1
printf '%s\n' "${sum%% *}"
"#;

/// new file, mode, target, `keep` or nothing: puts the new file in the target's place in one step. With `keep` what was
/// there stays as `.previous`, unless one that was confirmed is kept already.
pub(crate) const PLACE: &str = r#"
if [ -d "$3" ]; then echo "$3: Is a directory" >&2; return 1; fi
if [ ! -O "$1" ]; then rm -f -- "$1"; echo "$1: another user's file was in the way; it is gone" >&2; return 1; fi
chmod "$2" -- "$1" || return 1
if [ "$4" = keep ] && [ -f "$3" ] && [ ! -e "$3.previous" ]; then
  ln -- "$3" "$3.previous" || return 1
fi
mv -f -- "$1" "$3" || return 1
sync -- "${3%/*}/" 2>/dev/null || sync
"#;

/// install folder, name of the engine: removes beginnings of uploads.
pub(crate) const REMOVE_PARTS: &str = r#"
for path in "$1/.$2-"*.part; do rm -f -- "$path" || return 1; done
"#;

/// Targets: removes what was kept of each, because the new one has come up.
pub(crate) const CONFIRM: &str = r#"
for one; do rm -f -- "$one.previous" || return 1; done
"#;

/// Targets: brings back what was kept of each. Fails with 3 when there is nothing.
pub(crate) const ROLL_BACK: &str = r#"
found=3
for one; do
  if [ -f "$one.previous" ]; then
    mv -f -- "$one.previous" "$one" || return 1
    sync -- "${one%/*}/" 2>/dev/null || sync
    found=0
  fi
done
return $found
"#;

/// engine, configuration, unit or nothing.
pub(crate) const START: &str = r#"
if [ -n "$3" ]; then
  systemctl daemon-reload && systemctl enable --now -- "${3##*/}"
  return $?
fi
words=$(mktemp) || return 1
"$1" start --config "$2" >"$words" 2>&1
code=$?
tail -c 4096 -- "$words" >&2
rm -f -- "$words"
return $code
"#;

/// engine, configuration, data folder, unit or nothing, the configuration as it stands in a unit of ours. An engine that runs without the
/// unit is stopped, too, and one whose executable is damaged or gone by the pid files it has left, if the process is really one with
/// this configuration.
pub(crate) const STOP: &str = r#"
siterecovery_ours() {
  pid=$(cat -- "$1" 2>/dev/null) || return 1
  case $pid in '' | *[!0-9]*) return 1 ;; esac
  # The engine knows its configuration without the links on the way to it.
  real=$(readlink -f -- "$2") || real=$2
  tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF -e "$2" -e "$real"
}
if [ -n "$4" ] && [ -e "$4" ] && grep -qF -- "$5" "$4"; then systemctl disable --now -- "${4##*/}" || return 1; fi
if [ -f "$2" ]; then
  for one in "$1" "$1.previous"; do
    if [ -f "$one" ] && "$one" stop --config "$2" >&2; then break; fi
  done
fi
for file in "$3/supervisor.pid" "$3/engine.pid"; do
  if siterecovery_ours "$file" "$2"; then
    kill -TERM "$pid" 2>/dev/null
    waited=0
    while siterecovery_ours "$file" "$2"; do
      if [ "$waited" -ge 20 ]; then kill -KILL "$pid" 2>/dev/null; fi
      if [ "$waited" -ge 25 ]; then echo "process $pid does not end" >&2; return 1; fi
      waited=$((waited + 1))
      sleep 1
    done
  fi
done
return 0
"#;

/// unit, the configuration as it stands in a unit of ours: forgets it, unless it is another engine's.
pub(crate) const FORGET: &str = r#"
[ -e "$1" ] || return 0
grep -qF -- "$2" "$1" || return 0
rm -f -- "$1" "${1%/*}/.${1##*/}.new" && systemctl daemon-reload
"#;

/// A recovery folder: the paths that `Recovered::of` judges.
pub(crate) const LIST_RECOVERED: &str = r#"
# A folder that can't be read is not one without failed-over machines.
for one in "$1" "$1"/* "$1"/failovers/* "$1"/failovers/*/*; do
  if [ -d "$one" ]; then ls -A -- "$one" >/dev/null || return 1; fi
done
for one in "$1"/* "$1"/*/vm.toml "$1"/failovers/*/*/*; do
  if [ -e "$one" ] || [ -L "$one" ]; then printf '%s\0' "$one"; fi
done
"#;

/// engine, recovery folder, name of a VM.
pub(crate) const STOP_VM: &str = r#"
[ -f "$2/$3/vm.toml" ] || return 0
for one in "$1" "$1.previous"; do
  if [ -f "$one" ]; then "$one" vm stop --vm-folder "$2" "$3" >&2; return $?; fi
done
"#;

/// A recovery folder, then names in it that stay.
pub(crate) const REMOVE_RECOVERED: &str = r#"
siterecovery_stays() {
  name=$1
  shift
  for one; do if [ "$one" = "$name" ]; then return 0; fi; done
  return 1
}
folder=$1
shift
[ -d "$folder" ] || return 0
for path in "$folder"/* "$folder"/.*; do
  case ${path##*/} in . | ..) continue ;; esac
  if [ ! -e "$path" ] && [ ! -L "$path" ]; then continue; fi
  if ! siterecovery_stays "${path##*/}" "$@"; then rm -rf -- "$path" || return 1; fi
done
rmdir -- "$folder" 2>/dev/null
return 0
"#;

/// install folder, name of the engine, data folder, name of the record, then folders that go when they are empty, the innermost
/// first. Prints what is not ours and stays.
pub(crate) fn remove() -> String {
    // `recovered` is another script's.
    let ours: Vec<&str> = DATA
        .iter()
        .copied()
        .filter(|name| *name != crate::record::RECOVERED)
        .collect();
    format!(
        r#"
if [ ! -f "$1/.$2.owner" ] || grep -qxF -- "$3" "$1/.$2.owner"; then
  for path in "$1/$2" "$1/$2.previous" "$1/.$2-"*.part "$1/.$2.owner"; do rm -f -- "$path" || return 1; done
fi
data=$3
record=$4
shift 4
for path in "$data"/* "$data"/.*; do
  if [ ! -e "$path" ] && [ ! -L "$path" ]; then continue; fi
  case ${{path##*/}} in
    . | .. | "$record" | {recovered}) ;;
    {ours} | .*.new) rm -rf -- "$path" || return 1 ;;
    *) printf '%s\0' "$path" ;;
  esac
done
rm -f -- "$data/$record" || return 1
for path; do rmdir -- "$path" 2>/dev/null; done
return 0
"#,
        recovered = crate::record::RECOVERED,
        ours = ours.join(" | "),
    )
}

/// `name=value` lines.
pub(crate) fn facts(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|l| l.split_once('=')).collect()
}

/// Paths that end in NUL.
pub(crate) fn paths(out: &[u8]) -> Vec<String> {
    out.split(|byte| *byte == 0)
        .filter(|path| !path.is_empty())
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect()
}

/// The error of a script that has failed.
pub(crate) fn fault(step: &str, object: &str, ended: &Ended) -> DeployError {
    let text = ended.err.as_str();
    let (kind, next) = if text.contains("No space left") || text.contains("quota exceeded") {
        (
            DeployErrorKind::DiskFull,
            "free space on that volume of the host, or choose another folder",
        )
    } else if text.contains("Permission denied") || text.contains("Operation not permitted") {
        (
            DeployErrorKind::PermissionDenied,
            "sign in as a user that may write there, or choose another folder",
        )
    } else if text.contains("Read-only file system") {
        (
            DeployErrorKind::ReadOnly,
            "choose a folder on a volume that can be written",
        )
    } else if text.contains("Not a directory") || text.contains("Is a directory") {
        (
            DeployErrorKind::InvalidPath,
            "remove what is in the way, or choose another folder",
        )
    } else if text.contains("not found") {
        (
            DeployErrorKind::Unsupported,
            "install coreutils and util-linux on the host",
        )
    } else {
        (
            DeployErrorKind::Other,
            "look at the cause, then run it again",
        )
    };
    let cause = match text {
        "" => format!("it ended with exit code {} and said nothing", ended.code),
        text => crate::service::last_lines(text),
    };
    DeployError::new(kind, step, object, cause, next)
}

/// Refuses a host that the engine would not run on. `header`: the first bytes of the engine.
pub(crate) fn check_platform(
    facts: &BTreeMap<&str, &str>,
    header: &[u8],
) -> Result<(), (String, String)> {
    let system = facts.get("system").copied().unwrap_or("an unknown system");
    if system != "Linux" {
        return Err((
            format!("the host runs {system}; over SSH the engine is put onto Linux hosts only"),
            "install it there by hand: see the guide on Windows hosts".to_owned(),
        ));
    }
    let machine = facts.get("machine").copied().unwrap_or_default();
    // An ELF file tells its processor in bytes 18 and 19, little-endian for those that we build for.
    let of_engine = match (header.get(..4), header.get(18..20)) {
        (Some(b"\x7fELF"), Some([62, 0])) => "x86_64",
        (Some(b"\x7fELF"), Some([183, 0])) => "aarch64",
        (Some([b'M', b'Z', ..]), _) => {
            return Err((
                "the engine to install is one for Windows, the host runs Linux".to_owned(),
                "set engine_path to an engine for Linux".to_owned(),
            ));
        }
        _ => return Ok(()),
    };
    if of_engine != machine {
        return Err((
            format!("the engine to install is for {of_engine}, the host is a {machine}"),
            format!("set engine_path to an engine for {machine}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_another_kind_is_refused_before_anything_is_sent() {
        let mut elf = vec![0x7f, b'E', b'L', b'F'];
        elf.resize(64, 0);
        elf[18] = 62;
        let on = |system, machine, header: &[u8]| {
            check_platform(
                &[("system", system), ("machine", machine)]
                    .into_iter()
                    .collect(),
                header,
            )
        };
        assert_eq!(on("Linux", "x86_64", &elf), Ok(()));
        assert!(
            on("Linux", "aarch64", &elf)
                .unwrap_err()
                .0
                .contains("x86_64")
        );
        assert!(on("MINGW64_NT-10.0", "x86_64", &elf).is_err());
        assert!(on("Linux", "x86_64", b"MZ\x90\0").is_err());
    }

    #[test]
    fn every_name_that_the_deployment_owns_is_a_word_of_the_pattern() {
        let script = remove();
        for name in DATA {
            assert!(script.contains(name), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.'));
        }
    }
}
