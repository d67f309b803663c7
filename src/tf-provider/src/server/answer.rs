//! Answers that can carry diagnostics: nearly all of them.

use crate::diagnostics::Diagnostics;
use crate::proto::tfplugin6 as pb;

/// An answer of the protocol.
pub(crate) trait Answer: Default + Send + 'static {
    /// Adds diagnostics.
    fn add(&mut self, diagnostics: &Diagnostics);

    /// An answer that says only what is wrong.
    fn failed(diagnostics: &Diagnostics) -> Self {
        let mut answer = Self::default();
        answer.add(diagnostics);
        answer
    }
}

macro_rules! with_diagnostics {
    ($($call:ident),* $(,)?) => {$(
        impl Answer for pb::$call::Response {
            fn add(&mut self, diagnostics: &Diagnostics) {
                self.diagnostics.extend(diagnostics.to_proto());
            }
        }
    )*};
}

with_diagnostics!(
    apply_resource_change,
    close_ephemeral_resource,
    configure_provider,
    configure_state_store,
    delete_state,
    generate_resource_config,
    get_functions,
    get_metadata,
    get_provider_schema,
    get_resource_identity_schemas,
    get_states,
    import_resource_state,
    lock_state,
    move_resource_state,
    open_ephemeral_resource,
    plan_action,
    plan_resource_change,
    read_data_source,
    read_resource,
    read_state_bytes,
    renew_ephemeral_resource,
    unlock_state,
    upgrade_resource_identity,
    upgrade_resource_state,
    validate_action_config,
    validate_data_resource_config,
    validate_ephemeral_resource_config,
    validate_list_resource_config,
    validate_provider_config,
    validate_resource_config,
    validate_state_store,
    write_state_bytes,
);

impl Answer for pb::call_function::Response {
    /// Functions have one error text instead of diagnostics; warnings have no place.
    fn add(&mut self, diagnostics: &Diagnostics) {
        if diagnostics.has_errors() && self.error.is_none() {
            self.result = None;
            self.error = Some(pb::FunctionError {
                text: diagnostics.to_string(),
                function_argument: None,
            });
        }
    }
}
