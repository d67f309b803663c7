//! Pictures of a VM's display: QEMU writes a PNG file, which is read and removed.

use serde_json::json;

use super::{QemuDriver, connect, from_qmp};
use crate::{ErrorKind, HypervisorError, Screenshot, VmId};

/// A full-colour picture of the largest mode that the display's memory holds is below this.
const MAX_BYTES: u64 = 16 << 20;

impl QemuDriver {
    pub(super) async fn look_at_display(&self, vm: VmId) -> Result<Screenshot, HypervisorError> {
        let found = self.find(vm)?;
        let step = format!("look at the display of vm {}", found.config.name);
        let file = found.folder.screenshot();
        let mut qmp = connect(&found).await?;
        // QEMU 7.1 and later know the format.
        let arguments = json!({ "filename": file.to_string_lossy(), "format": "png" });
        let taken = qmp.execute("screendump", arguments).await;
        drop(qmp);
        let result = match taken {
            Ok(_) => read(&file, &step).await,
            Err(error) => Err(from_qmp(step, error)),
        };
        // Left behind it would only be overwritten by the next one.
        let _gone = tokio::fs::remove_file(&file).await;
        result
    }
}

async fn read(file: &std::path::Path, step: &str) -> Result<Screenshot, HypervisorError> {
    let failed =
        |error: std::io::Error| HypervisorError::with_source(ErrorKind::Io, step.to_owned(), error);
    let length = tokio::fs::metadata(file).await.map_err(failed)?.len();
    if length > MAX_BYTES {
        return Err(HypervisorError::new(
            ErrorKind::Protocol,
            format!("{step}: a picture of {length} bytes"),
        ));
    }
    let bytes = tokio::fs::read(file).await.map_err(failed)?;
    Screenshot::from_png(bytes.into()).ok_or_else(|| {
        HypervisorError::new(
            ErrorKind::Protocol,
            format!("{step}: qemu wrote no PNG file"),
        )
    })
}
