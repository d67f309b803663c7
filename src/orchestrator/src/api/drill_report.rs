//! `GET <job>/drillReport?format=json|html`: the report of a drill or a failover. An extension of ours.

use arm_model::JobId;
use arm_model::job::{DRILL_DETAILS, FAILOVER_DETAILS};

use super::entry::Call;
use super::load;
use super::reply::Reply;
use crate::fault::Fault;
use crate::store::records::JobRecord;
use crate::{evidence, report};

/// The report, as JSON without `format`.
///
/// # Errors
/// 404 without the job; 409 for a job that recovers no VM; 400 for another format.
pub async fn get(call: &Call<'_>, id: &JobId) -> Result<Reply, Fault> {
    let job = load::require::<JobRecord>(call.app, id.as_str())
        .await?
        .record;
    let kind = job.properties.custom_details.instance_type.as_str();
    if ![DRILL_DETAILS, FAILOVER_DETAILS].contains(&kind) {
        return Err(Fault::conflict(
            "OperationNotAllowed",
            id.as_str(),
            format!(
                "The job is `{}`: it recovers no virtual machine, so there is nothing to report.",
                job.properties.friendly_name
            ),
            "Ask for the report of the job of a test failover or a failover.",
        ));
    }
    let report = report::build(&job, &evidence::of_job(call.app, &job.id).await?);
    match call.query.get("format").map_or("json", String::as_str) {
        "json" => Reply::ok(&report::document(&report)),
        "html" => Ok(Reply::Html(report::html::render(&report))),
        other => Err(Fault::invalid(
            "format",
            format!("`{other}` is no format of a report; use `json` or `html`."),
        )),
    }
}
