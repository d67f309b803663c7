//! Static checks and the configuration of the provider.

use crate::checking::check_config;
use crate::context::ClientCapabilities;
use crate::diagnostics::Diagnostics;
use crate::proto::tfplugin6 as pb;
use crate::provider::Provider;
use crate::wire;

use super::core::{Call, find};

/// Calls that carry no capabilities come from clients that know write-only attributes where those are allowed.
const ALL_ALLOWED: ClientCapabilities = ClientCapabilities {
    deferral_allowed: false,
    write_only_attributes_allowed: true,
    store_planned_private: false,
    computed_blocks_allowed: false,
};

pub(crate) async fn provider<P: Provider>(
    call: Call<P>,
    request: pb::validate_provider_config::Request,
) -> Result<pb::validate_provider_config::Response, Diagnostics> {
    let schema = &call.core.schema;
    let config = wire::config(request.config.as_ref(), schema)?;
    let mut report = Diagnostics::new();
    check_config(schema.block.members(), &config, ALL_ALLOWED, &mut report);
    let cx = call.context(ClientCapabilities::default());
    call.core.provider.validate(&cx, &config, &mut report).await;
    Ok(pb::validate_provider_config::Response {
        diagnostics: report.to_proto(),
    })
}

pub(crate) async fn configure<P: Provider>(
    call: Call<P>,
    request: pb::configure_provider::Request,
) -> Result<pb::configure_provider::Response, Diagnostics> {
    call.session.set_client(None);
    call.session
        .set_terraform_version(request.terraform_version);
    let config = wire::config(request.config.as_ref(), &call.core.schema)?;
    let cx = call.context(wire::capabilities(request.client_capabilities.as_ref()));
    let client = call.core.provider.configure(&cx, &config).await?;
    call.session.set_client(client);
    Ok(pb::configure_provider::Response::default())
}

macro_rules! validate {
    ($name:ident, $parts:ident, $kind:literal, $message:ident, $capabilities:expr) => {
        pub(crate) async fn $name<P: Provider>(
            call: Call<P>,
            request: pb::$message::Request,
        ) -> Result<pb::$message::Response, Diagnostics> {
            let entry = find(&call.core.$parts, $kind, &request.type_name)?;
            let config = wire::config(request.config.as_ref(), &entry.schema)?;
            let capabilities: fn(&pb::$message::Request) -> ClientCapabilities = $capabilities;
            let capabilities = capabilities(&request);
            let mut report = Diagnostics::new();
            check_config(
                entry.schema.block.members(),
                &config,
                capabilities,
                &mut report,
            );
            let cx = call.context(capabilities);
            entry.part.validate(&cx, &config, &mut report).await;
            Ok(pb::$message::Response {
                diagnostics: report.to_proto(),
            })
        }
    };
}

validate!(
    resource,
    resources,
    "resource",
    validate_resource_config,
    |request| { wire::capabilities(request.client_capabilities.as_ref()) }
);
validate!(
    data_source,
    data_sources,
    "data source",
    validate_data_resource_config,
    |_| ALL_ALLOWED
);
validate!(
    ephemeral_resource,
    ephemeral_resources,
    "ephemeral resource",
    validate_ephemeral_resource_config,
    |_| ALL_ALLOWED
);
validate!(
    list_resource,
    list_resources,
    "list resource",
    validate_list_resource_config,
    |_| ALL_ALLOWED
);
validate!(action, actions, "action", validate_action_config, |_| {
    ALL_ALLOWED
});
