//! Whether the engine behind a connection is the one that a resource is about: an address may lead to another machine by now, and a host
//! may have been installed anew.

use host_deploy::{DeployError, Inspection};
use tf_provider::{Diagnostic, Diagnostics, Object};

use super::connection::is_ssh;
use crate::errors::sentence;

/// What lies behind the connection is not what the state is about.
pub(super) enum Elsewhere {
    /// Another engine's identity.
    Other(String),
    /// None: the host was installed anew, or its data folder is gone.
    Nothing(String),
}

impl Elsewhere {
    fn text(&self) -> &str {
        match self {
            Elsewhere::Other(text) | Elsewhere::Nothing(text) => text,
        }
    }

    fn next(&self) -> &'static str {
        match self {
            Elsewhere::Other(_) => {
                "check host and port of host_connection; if the connection is right, run terraform state rm for this resource and import or create the host anew"
            }
            Elsewhere::Nothing(_) => {
                "restore the data folder; or make the host anew with terraform apply -replace"
            }
        }
    }

    /// For a plan, which goes on.
    pub(super) fn warned(&self) -> Diagnostic {
        Diagnostic::warning("Another engine than this resource's", self.detail())
            .at("host_connection")
    }

    /// For what would be done to the wrong engine.
    pub(super) fn refused(&self, word: &str) -> Diagnostics {
        Diagnostic::error(
            format!("The {word} was not begun: it would meet another engine than this resource's"),
            self.detail(),
        )
        .at("host_connection")
        .into()
    }

    fn detail(&self) -> String {
        format!(
            "{}\nWhat to do: {}",
            sentence(self.text()),
            sentence(self.next())
        )
    }
}

/// Whether the engine that was looked at is another one than the state's. A creation that was cut has no engine yet.
pub(super) fn another_host(seen: &Inspection, state: &Object) -> Option<Elsewhere> {
    let own = state.str("engine_id").filter(|id| !id.is_empty())?;
    let name = state.string("name");
    match seen.engine_id.as_deref() {
        Some(id) if id.eq_ignore_ascii_case(own) => None,
        Some(id) => Some(Elsewhere::Other(format!(
            "behind the connection of host {name} is engine {id}, and this resource is engine {own}"
        ))),
        None => Some(Elsewhere::Nothing(format!(
            "on host {name} there is no identity of engine {own} any more"
        ))),
    }
}

/// What to tell of a host whose record is gone while its engine is not, or may not be: without the state nothing would remember it.
pub(super) fn still_there(
    looked: Result<&Inspection, &DeployError>,
    state: &Object,
) -> Option<Diagnostic> {
    let own = state.str("engine_id").filter(|id| !id.is_empty())?;
    let found = match looked {
        Ok(seen) => {
            let id = seen.engine_id.as_deref()?;
            if !id.eq_ignore_ascii_case(own) {
                return None;
            }
            "its engine is still on the host".to_owned()
        }
        Err(error) if is_ssh(state) => {
            format!("whether its engine is still there is not known: {error}")
        }
        Err(_) => return None,
    };
    let name = state.string("name");
    Some(Diagnostic::warning(
        format!("Host {name} has no record any more"),
        format!(
            "{}\nWhat to do: {}",
            sentence(&found),
            sentence(
                "apply to make the host anew, or destroy to take the engine away; terraform state rm when the machine is gone for good"
            )
        ),
    ))
}

/// An import takes a host for the local machine. One that is not there is not replaced by one over SSH: that would remove its
/// record and leave its engine.
pub(super) fn imported_elsewhere(prior: &Object, planned: &Object) -> Result<(), Diagnostics> {
    if is_ssh(prior) || !is_ssh(planned) || !prior.is_null("engine_sha256") {
        return Ok(());
    }
    Err(Diagnostics::error_at(
        "host_connection",
        "An imported host can't be turned into one over SSH",
        "An import takes the host for the machine that Terraform runs on, and there is no engine here; going on would remove the \
         record of the real host and leave its engine.\nWhat to do: run terraform state rm for this resource, destroy the host where \
         it was made, and create it here.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: Option<&str>) -> Inspection {
        Inspection {
            engine_sha256: None,
            engine_version: None,
            bundled_sha256: None,
            config_current: true,
            running: true,
            engine_id: id.map(ToOwned::to_owned),
            owner: None,
            host_key_fingerprint: None,
        }
    }

    fn state(kind: &str) -> Object {
        Object::new()
            .with("name", "hv1")
            .with("engine_id", "aa-1")
            .with("host_connection", Object::new().with("type", kind))
    }

    #[test]
    fn only_the_engine_of_the_state_is_the_right_one() {
        let state = state("ssh");
        assert!(another_host(&seen(Some("AA-1")), &state).is_none());
        let other = another_host(&seen(Some("bb-2")), &state);
        assert!(matches!(other, Some(Elsewhere::Other(text)) if text.contains("bb-2")));
        let none = another_host(&seen(None), &state);
        assert!(matches!(none, Some(Elsewhere::Nothing(_))));
        assert!(another_host(&seen(None), &Object::new()).is_none());
    }

    #[test]
    fn a_host_without_a_record_is_remembered_while_its_engine_is_there() {
        let state = state("ssh");
        assert!(still_there(Ok(&seen(Some("aa-1"))), &state).is_some());
        assert!(still_there(Ok(&seen(Some("bb-2"))), &state).is_none());
        assert!(still_there(Ok(&seen(None)), &state).is_none());
    }

    #[test]
    fn an_imported_host_that_is_not_here_does_not_become_one_over_ssh() {
        let (local, ssh) = (state("local"), state("ssh"));
        assert!(imported_elsewhere(&local, &ssh).is_err());
        assert!(imported_elsewhere(&local, &local).is_ok());
        assert!(imported_elsewhere(&ssh, &ssh).is_ok());
        let installed = local.with("engine_sha256", "00");
        assert!(imported_elsewhere(&installed, &ssh).is_ok());
    }
}
