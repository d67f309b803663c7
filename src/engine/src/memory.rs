//! Keeps the allocator from holding memory that nobody uses.
//!
//! glibc gives every thread an arena of its own, up to eight a processor, and what was once used in one of them stays
//! resident. File work runs on many threads, a piece of some MiB at a time, so that the engine would hold several times of
//! what is in flight. The limit is read at the start of a program only, so the program starts itself once more.

/// Limits the arenas of this process, unless its environment does so already. Returns at once, or not at all: then the
/// program begins anew, with the same process id, arguments and open files.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn limit_arenas() {
    use std::os::unix::process::CommandExt as _;
    const VARIABLE: &str = "MALLOC_ARENA_MAX";
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) else {
        return;
    };
    // Comes back only when it can't be done, as when the program's file was replaced: then memory is all that is lost.
    let _error = std::process::Command::new(program)
        .arg0(name)
        .args(arguments)
        .env(VARIABLE, "2")
        .exec();
}

/// Other allocators have no such limit, and need none.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn limit_arenas() {}
