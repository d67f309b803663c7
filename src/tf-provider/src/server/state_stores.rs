//! State stores: this server offers none, so each call says so.

use tonic::{Response, Status};

use crate::diagnostics::Diagnostics;

use super::answer::Answer;

pub(crate) fn refusal<R: Answer>(type_name: &str) -> R {
    R::failed(&Diagnostics::error(
        "No state stores",
        format!(
            "This provider has no state store {type_name:?}, nor any other. Use a backend of Terraform."
        ),
    ))
}

pub(crate) fn refuse<R: Answer>(type_name: &str) -> Result<Response<R>, Status> {
    Ok(Response::new(refusal(type_name)))
}
