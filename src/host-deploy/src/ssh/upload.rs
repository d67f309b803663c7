//! Brings the engine onto the host, whatever becomes of the connection on the way.
//!
//! ```text
//! <install folder>/.siterecovery-engine-<hash>.part   grows; named by what it will be, so two versions never mix
//!    cut off ─► the next run hashes what is there, and goes on behind it if it is a beginning of the engine
//!    whole   ─► hashed by the host, synced ─► renamed by the caller
//! ```

use std::io::SeekFrom;
use std::path::Path;

use russh_sftp::client::SftpSession;
use russh_sftp::client::fs::File;
use russh_sftp::protocol::{FileAttributes, OpenFlags};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::linux;
use super::session::SshSession;
use crate::error::{DeployError, DeployErrorKind};

const PIECE: usize = 256 * 1024;
const MIB: u64 = 1 << 20;
/// Progress is told this often.
const TOLD_EVERY: u64 = 4 * MIB;
/// What else the deployment writes.
const SPARE: u64 = MIB;

/// Uploads `local` to `part` so that it has the hash `sha256`. Gives back how many bytes were sent.
pub(crate) async fn upload(
    session: &SshSession,
    sftp: &SftpSession,
    local: &Path,
    part: &str,
    sha256: &str,
) -> Result<u64, DeployError> {
    let read = |error| DeployError::io("reading", local, error);
    let mut source = tokio::fs::File::open(local).await.map_err(read)?;
    let whole = source.metadata().await.map_err(read)?.len();
    let begun = begun(session, sftp, &mut source, local, part, whole).await?;
    refuse_full(session, sftp, part, whole - begun + SPARE).await?;
    tracing::info!(
        host = session.label(),
        "sending the engine: {} of {} KiB{}",
        (whole - begun) >> 10,
        whole >> 10,
        if begun > 0 { ", the rest is there" } else { "" }
    );
    let sent = send(session, sftp, &mut source, local, part, begun, whole).await;
    if let Err(error) = sent {
        // SFTP has no word for a full disk.
        if !session.is_closed() && error.kind() == DeployErrorKind::Other {
            refuse_full(session, sftp, part, PIECE as u64).await?;
        }
        return Err(error);
    }
    let found = hash(session, part, whole).await?;
    if found != sha256 {
        let _ = sftp.remove_file(part).await;
        return Err(DeployError::new(
            DeployErrorKind::Other,
            "checking what was sent to",
            format!("{part} on {}", session.label()),
            "its hash is not the engine's",
            "run it again; if that doesn't help, check the host's disk",
        ));
    }
    Ok(whole - begun)
}

/// How much of the engine is there already.
async fn begun(
    session: &SshSession,
    sftp: &SftpSession,
    source: &mut tokio::fs::File,
    local: &Path,
    part: &str,
    whole: u64,
) -> Result<u64, DeployError> {
    let there = match sftp.symlink_metadata(part).await {
        Ok(found) if found.is_regular() => found.size.unwrap_or(0),
        Ok(_) | Err(_) => 0,
    };
    if there == 0 || there > whole {
        return Ok(0);
    }
    let read = |error| DeployError::io("reading", local, error);
    let mut own = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut left = there;
    while left > 0 {
        let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let count = source.read(&mut buffer[..most]).await.map_err(read)?;
        if count == 0 {
            return Ok(0);
        }
        own.update(&buffer[..count]);
        left -= count as u64;
    }
    let own: String = own.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(if hash(session, part, there).await? == own {
        there
    } else {
        0
    })
}

async fn send(
    session: &SshSession,
    sftp: &SftpSession,
    source: &mut tokio::fs::File,
    local: &Path,
    part: &str,
    begun: u64,
    whole: u64,
) -> Result<(), DeployError> {
    let read = |error| DeployError::io("reading", local, error);
    let failed = |error: std::io::Error| write_failed(session, part, &error);
    let mut flags = OpenFlags::WRITE | OpenFlags::CREATE;
    if begun == 0 {
        // Whoever may write to the folder may have put a link or a file of his own there.
        let _ = sftp.remove_file(part).await;
        flags |= OpenFlags::EXCLUDE;
    }
    let mut target = create(session, sftp, part, flags, 0o600).await?;
    source.seek(SeekFrom::Start(begun)).await.map_err(read)?;
    target.seek(SeekFrom::Start(begun)).await.map_err(failed)?;
    let mut buffer = vec![0; PIECE];
    let (mut at, mut told) = (begun, begun);
    loop {
        let count = source.read(&mut buffer).await.map_err(read)?;
        if count == 0 {
            break;
        }
        target.write_all(&buffer[..count]).await.map_err(failed)?;
        at += count as u64;
        if at - told >= TOLD_EVERY {
            told = at;
            tracing::info!(
                host = session.label(),
                "sent {} % of the engine",
                at * 100 / whole.max(1)
            );
        }
    }
    finish(session, target, part).await
}

/// Opens a file of ours, made with this mode when it isn't there.
pub(crate) async fn create(
    session: &SshSession,
    sftp: &SftpSession,
    path: &str,
    flags: OpenFlags,
    mode: u32,
) -> Result<File, DeployError> {
    let attributes = FileAttributes {
        permissions: Some(mode),
        ..FileAttributes::empty()
    };
    sftp.open_with_flags_and_attributes(path, flags, attributes)
        .await
        .map_err(|error| write_failed(session, path, &error.into()))
}

/// Waits for all writes, syncs and closes.
pub(crate) async fn finish(
    session: &SshSession,
    mut file: File,
    path: &str,
) -> Result<(), DeployError> {
    let failed = |error: std::io::Error| write_failed(session, path, &error);
    file.flush().await.map_err(failed)?;
    file.sync_all()
        .await
        .map_err(|error| failed(error.into()))?;
    file.close().await.map_err(failed)
}

/// SFTP's errors have few words: a lost connection, a refusal, or "Failure".
pub(crate) fn write_failed(
    session: &SshSession,
    path: &str,
    error: &std::io::Error,
) -> DeployError {
    let text = error.to_string();
    if session.is_closed()
        || error.kind() == std::io::ErrorKind::TimedOut
        || text.contains("SendError")
        || text.contains("RecvError")
    {
        return session.lost(&format!("writing {path} on"), text);
    }
    let (kind, next) = if text.contains("ermission denied") {
        (
            DeployErrorKind::PermissionDenied,
            "sign in as a user that may write there, or choose another folder",
        )
    } else {
        (
            DeployErrorKind::Other,
            "look at the volume on the host, then run it again",
        )
    };
    DeployError::new(
        kind,
        "writing",
        format!("{path} on {}", session.label()),
        text,
        next,
    )
}

/// Refuses when the volume of a file has less room than `needed` bytes. Servers that can't tell are believed to have room.
pub(crate) async fn refuse_full(
    session: &SshSession,
    sftp: &SftpSession,
    file: &str,
    needed: u64,
) -> Result<(), DeployError> {
    let folder = file.rsplit_once('/').map_or("/", |(folder, _)| folder);
    let Ok(Some(volume)) = sftp.fs_info(folder).await else {
        return Ok(());
    };
    let room = volume.blocks_avail.saturating_mul(volume.fragment_size);
    if room >= needed {
        return Ok(());
    }
    Err(DeployError::new(
        DeployErrorKind::DiskFull,
        "writing",
        format!("{file} on {}", session.label()),
        format!(
            "the volume is full: {} KiB are needed, {} are free",
            needed.div_ceil(1024),
            room >> 10
        ),
        "free space on that volume of the host, or choose another folder",
    ))
}

async fn hash(session: &SshSession, path: &str, bytes: u64) -> Result<String, DeployError> {
    let step = "hashing the engine on";
    let ended = session
        .run(step, linux::HASH, &[path, &bytes.to_string()])
        .await?;
    match ended.code {
        0 => Ok(ended.text().trim().to_owned()),
        _ => Err(linux::fault("hashing", path, &ended).on(session.label())),
    }
}
