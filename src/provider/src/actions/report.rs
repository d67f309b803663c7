//! The report of a drill's or a failover's job as a file.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tf_provider::{Attribute, Diagnostics, Object, Schema};

use crate::remote::Remote;

const REPORT: &str = "report_path";

/// Where a report goes.
pub(super) struct Report {
    file: PathBuf,
    format: &'static str,
}

/// Adds the argument.
pub(super) fn add(schema: Schema) -> Schema {
    schema.attribute(
        REPORT,
        Attribute::string()
            .optional()
            .check(|value| match value.as_str().map(format_of) {
                Some(None) => Err("must end with .html or .json".to_owned()),
                _ => Ok(()),
            })
            .describe(
                "File that gets the job's report, for the auditor: `.html` for people, `.json` for programs. Written when the job has ended, also when it \
                 failed; one that is there is replaced. Its folder must exist.",
            ),
    )
}

fn format_of(file: &str) -> Option<&'static str> {
    let is = |ending: &str| {
        let found = Path::new(file).extension();
        found.is_some_and(|found| found.eq_ignore_ascii_case(ending))
    };
    ["html", "json"].into_iter().find(|ending| is(ending))
}

// === impl Report ===

impl Report {
    /// What the configuration asks for. Looks for the folder now: after the job it would be too late.
    pub(super) async fn asked(config: &Object) -> Result<Option<Self>, Diagnostics> {
        let Some((text, format)) = config
            .str(REPORT)
            .and_then(|text| Some((text, format_of(text)?)))
        else {
            return Ok(None);
        };
        let file = PathBuf::from(text);
        let folder = file
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let found = tokio::fs::metadata(folder).await;
        if !found.is_ok_and(|found| found.is_dir()) {
            return Err(Diagnostics::error_at(
                REPORT,
                "The folder of the report is not there",
                format!(
                    "{} is no folder of this machine; nothing was begun.\nWhat to do: make the folder, or choose another file.",
                    folder.display()
                ),
            ));
        }
        Ok(Some(Self { file, format }))
    }

    /// Writes it; gives the line that tells of it.
    pub(super) async fn write(
        &self,
        remote: &Remote<'_>,
        job: &str,
    ) -> Result<String, Diagnostics> {
        let path = format!("{job}/drillReport?format={}", self.format);
        let text = match remote.find::<Json>(&path).await? {
            Some(Json::String(page)) => page,
            Some(document) => format!("{document:#}\n"),
            None => {
                return Err(Diagnostics::error_at(
                    REPORT,
                    "There is no report",
                    format!("The service has none of job {job}."),
                ));
            }
        };
        tokio::fs::write(&self.file, text).await.map_err(|error| {
            Diagnostics::error_at(
                REPORT,
                "The report can't be written",
                format!(
                    "{}: {error}. The job itself has ended.\nWhat to do: get the report with `siterecovery test-failover report {}`.",
                    self.file.display(),
                    job.rsplit('/').next().unwrap_or_default()
                ),
            )
        })?;
        Ok(format!("report: {}", self.file.display()))
    }
}
