//! A client of our own speaks the protocol to the example provider: every call, TLS, limits, the end.

mod support {
    #[path = "../support/client.rs"]
    pub mod client;
    #[path = "../support/mod.rs"]
    mod lab;
    pub use lab::provider_program;
}

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use support::client::{
    ClientCertificate, Plugin, anonymous_tls, block_type, dynamic, null, object,
};
use support::provider_program;
use tf_provider::proto::tfplugin6 as pb;
use tf_provider::proto::tfplugin6::provider_client::ProviderClient;
use tf_provider::proto::{health, plugin};
use tf_provider::{Object, Type, Value};
use tonic::transport::Channel;

type Client = ProviderClient<Channel>;

#[test]
fn a_person_who_starts_it_gets_a_hint() {
    let output = std::process::Command::new(provider_program())
        .env_remove("TF_PLUGIN_MAGIC_COOKIE")
        .output()
        .expect("the provider starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by Terraform"));
}

#[tokio::test]
async fn only_the_holder_of_the_certificate_gets_in() {
    let certificate = ClientCertificate::new();
    let plugin = Plugin::start(Some(&certificate.pem));
    assert!(
        plugin.line.starts_with("1|6|unix|") && !plugin.line.contains('='),
        "{}",
        plugin.line
    );
    let folder = plugin
        .socket
        .parent()
        .expect("the socket has a folder")
        .to_owned();
    let mode = std::fs::metadata(&folder)
        .expect("it exists")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);

    let channel = plugin
        .try_channel(Some(certificate.tls(&plugin)))
        .await
        .expect("the holder gets in");
    let mut client = ProviderClient::new(channel);
    client
        .get_metadata(pb::get_metadata::Request {})
        .await
        .expect("calls work");

    let other = ClientCertificate::new();
    for (who, tls) in [
        ("without a certificate", Some(anonymous_tls(&plugin))),
        ("with another certificate", Some(other.tls(&plugin))),
        ("in plain text", None),
    ] {
        let refused = match plugin.try_channel(tls).await {
            Err(_) => true,
            // In TLS 1.3 the client only learns of the refusal with its first read.
            Ok(channel) => ProviderClient::new(channel)
                .get_metadata(pb::get_metadata::Request {})
                .await
                .is_err(),
        };
        assert!(refused, "a client {who} got in");
    }
    client
        .get_metadata(pb::get_metadata::Request {})
        .await
        .expect("the others harmed nobody");
}

#[tokio::test]
async fn it_ends_soon_after_shutdown_and_leaves_nothing() {
    let mut plugin = Plugin::start(None);
    let channel = plugin.channel().await;
    let mut stdio = plugin::grpc_stdio_client::GrpcStdioClient::new(channel.clone());
    let stdio = stdio.stream_stdio(()).await.expect("the stream opens");
    let mut broker = plugin::grpc_broker_client::GrpcBrokerClient::new(channel.clone());
    let broker = broker
        .start_stream(futures::stream::pending())
        .await
        .expect("the stream opens");
    let mut health = health::health_client::HealthClient::new(channel.clone());
    let request = health::HealthCheckRequest {
        service: "plugin".to_owned(),
    };
    assert_eq!(
        health
            .check(request)
            .await
            .expect("it answers")
            .into_inner()
            .status,
        1
    );

    let started = Instant::now();
    let mut controller = plugin::grpc_controller_client::GrpcControllerClient::new(channel.clone());
    controller
        .shutdown(plugin::Empty {})
        .await
        .expect("shutdown is answered");
    let status = tokio::task::spawn_blocking(move || {
        let status = plugin.child.wait().expect("it ends");
        (status, plugin.socket.clone())
    });
    let (status, socket) = status.await.expect("waiting works");
    assert!(status.success(), "{status}");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "it took {:?}",
        started.elapsed()
    );
    assert!(!socket.parent().expect("the socket has a folder").exists());
    drop((stdio, broker, channel));
}

/// A configured provider with a note type.
struct Notes {
    client: Client,
    ty: Type,
    folder: tempfile::TempDir,
    plugin: Plugin,
}

impl Notes {
    async fn new() -> Self {
        let plugin = Plugin::start(None);
        let mut client = plugin.provider().await.max_encoding_message_size(256 << 20);
        let request = pb::get_provider_schema::Request {};
        let schema = client
            .get_provider_schema(request)
            .await
            .expect("it answers")
            .into_inner();
        assert!(schema.diagnostics.is_empty(), "{:?}", schema.diagnostics);
        let ty = block_type(
            schema.resource_schemas["example_note"]
                .block
                .as_ref()
                .expect("a schema has a block"),
        );
        let root = block_type(
            schema
                .provider
                .expect("always there")
                .block
                .as_ref()
                .expect("a schema has a block"),
        );
        let folder = tempfile::tempdir().expect("the temporary folder is writable");
        let config = Object::new().with("root", folder.path().to_string_lossy().into_owned());
        let request = pb::configure_provider::Request {
            config: Some(dynamic(&root, &config)),
            ..Default::default()
        };
        let answer = client
            .configure_provider(request)
            .await
            .expect("it answers")
            .into_inner();
        assert!(answer.diagnostics.is_empty(), "{:?}", answer.diagnostics);
        Self {
            client,
            ty,
            folder,
            plugin,
        }
    }

    fn note(&self, fields: &Object) -> Option<pb::DynamicValue> {
        Some(dynamic(&self.ty, fields))
    }

    /// Plans and applies a create.
    async fn create(&mut self, config: Object) -> pb::apply_resource_change::Response {
        let plan = pb::plan_resource_change::Request {
            type_name: "example_note".to_owned(),
            prior_state: Some(null()),
            proposed_new_state: self.note(&config),
            config: self.note(&config),
            ..Default::default()
        };
        let plan = self
            .client
            .plan_resource_change(plan)
            .await
            .expect("it answers")
            .into_inner();
        assert!(plan.diagnostics.is_empty(), "{:?}", plan.diagnostics);
        let apply = pb::apply_resource_change::Request {
            type_name: "example_note".to_owned(),
            prior_state: Some(null()),
            planned_state: plan.planned_state,
            config: self.note(&config),
            planned_private: plan.planned_private,
            ..Default::default()
        };
        self.client
            .apply_resource_change(apply)
            .await
            .expect("it answers")
            .into_inner()
    }
}

#[tokio::test]
async fn a_failed_create_still_answers_with_state_private_bytes_and_identity() {
    let mut notes = Notes::new().await;
    let config = Object::new()
        .with("name", "alpha")
        .with("fault", "fail")
        .with("secret", "hush");
    let answer = notes.create(config).await;
    assert_eq!(answer.diagnostics[0].summary, "Asked to fail");
    let state = object(&notes.ty, answer.new_state.as_ref()).expect("the object exists");
    assert_eq!(state.str("id"), Some("note-alpha"));
    assert!(state.is_wholly_known() && state.is_null("secret"));
    assert_eq!(&answer.private[..], b"made by create");
    assert!(answer.new_identity.is_some());
}

#[tokio::test]
async fn a_stop_ends_running_work_and_the_server_keeps_serving() {
    let mut notes = Notes::new().await;
    let mut other = notes.client.clone();
    let folder = notes.folder.path().join("note-slow.json");
    let config = Object::new().with("name", "slow").with("delay_ms", 600_000);
    let stop = async {
        while !folder.exists() {
            tokio::task::yield_now().await;
        }
        // Other calls are answered while one runs.
        other
            .get_metadata(pb::get_metadata::Request {})
            .await
            .expect("it answers");
        let id = notes.plugin.child.id().to_string();
        let killed = std::process::Command::new("kill")
            .args(["-INT", &id])
            .status()
            .expect("kill starts");
        assert!(killed.success());
        other
            .get_metadata(pb::get_metadata::Request {})
            .await
            .expect("an interrupt does not end it");
        other
            .stop_provider(pb::stop_provider::Request {})
            .await
            .expect("it answers")
            .into_inner()
    };
    let mut running = Notes {
        client: notes.client.clone(),
        ty: notes.ty.clone(),
        folder: tempfile::tempdir().expect("the temporary folder is writable"),
        plugin: Plugin::start(None),
    };
    let (answer, stopped) = tokio::join!(running.create(config), stop);
    assert_eq!(stopped.error, "");
    assert_eq!(answer.diagnostics[0].summary, "Interrupted");
    assert!(object(&notes.ty, answer.new_state.as_ref()).is_some());
    let answer = notes
        .create(Object::new().with("name", "next").with("delay_ms", 1))
        .await;
    assert!(
        answer.diagnostics.is_empty(),
        "a later call sees the old stop: {:?}",
        answer.diagnostics
    );
}

#[tokio::test]
async fn a_write_only_value_is_refused_where_it_would_be_stored() {
    let mut notes = Notes::new().await;
    let mut request = pb::validate_resource_config::Request {
        type_name: "example_note".to_owned(),
        config: notes.note(&Object::new().with("name", "a").with("secret", "hush")),
        client_capabilities: None,
    };
    let answer = notes
        .client
        .validate_resource_config(request.clone())
        .await
        .expect("it answers")
        .into_inner();
    assert_eq!(answer.diagnostics.len(), 1);
    assert!(answer.diagnostics[0].attribute.is_some() && !format!("{answer:?}").contains("hush"));
    request.client_capabilities = Some(pb::ClientCapabilities {
        write_only_attributes_allowed: true,
        ..Default::default()
    });
    let answer = notes
        .client
        .validate_resource_config(request)
        .await
        .expect("it answers")
        .into_inner();
    assert!(answer.diagnostics.is_empty());
}

#[tokio::test]
async fn requests_of_many_mebibytes_are_taken() {
    let mut notes = Notes::new().await;
    let text = "x".repeat(20 << 20);
    let answer = notes
        .create(Object::new().with("name", "big").with("text", text.clone()))
        .await;
    let state = object(&notes.ty, answer.new_state.as_ref()).expect("it was created");
    assert_eq!(state.str("text").map(str::len), Some(text.len()));
}

#[tokio::test]
async fn values_that_cannot_be_read_give_diagnostics() {
    let mut notes = Notes::new().await;
    let broken = pb::DynamicValue {
        msgpack: vec![0x81, 0xFF].into(),
        json: Default::default(),
    };
    let request = pb::validate_resource_config::Request {
        type_name: "example_note".to_owned(),
        config: Some(broken),
        ..Default::default()
    };
    let answer = notes
        .client
        .validate_resource_config(request)
        .await
        .expect("it answers")
        .into_inner();
    assert!(answer.diagnostics[0].summary.contains("cannot be read"));
}

/// Makes a call for a type that does not exist and expects a diagnostic, not a gRPC error.
macro_rules! refuses {
    ($client:expr, $method:ident, $request:ident, $answer:ident) => {
        let request = pb::$request::Request::default();
        let answer: pb::$answer::Response =
            $client.$method(request).await.expect(stringify!($method)).into_inner();
        assert!(!answer.diagnostics.is_empty(), stringify!($method));
        assert!(!answer.diagnostics[0].detail.is_empty(), stringify!($method));
    };
    ($client:expr, $($method:ident),* $(,)?) => {$(refuses!($client, $method, $method, $method);)*};
}

#[tokio::test]
async fn calls_for_what_does_not_exist_are_answered_with_diagnostics() {
    let mut client = Notes::new().await.client_keeping_plugin();
    let client = &mut client.0;
    refuses!(
        client,
        validate_resource_config,
        validate_data_resource_config,
        validate_ephemeral_resource_config,
        validate_list_resource_config,
        validate_action_config,
        upgrade_resource_state,
        upgrade_resource_identity,
        read_resource,
        plan_resource_change,
        apply_resource_change,
        import_resource_state,
        move_resource_state,
        read_data_source,
        generate_resource_config,
        open_ephemeral_resource,
        renew_ephemeral_resource,
        close_ephemeral_resource,
        plan_action,
        configure_state_store,
        lock_state,
        unlock_state,
        get_states,
        delete_state,
    );
    refuses!(
        client,
        validate_state_store_config,
        validate_state_store,
        validate_state_store
    );
    let answer = client
        .call_function(pb::call_function::Request::default())
        .await
        .expect("it answers")
        .into_inner();
    assert!(answer.error.is_some() && answer.result.is_none());
    let mut events = client
        .list_resource(pb::list_resource::Request::default())
        .await
        .expect("it answers")
        .into_inner();
    let event = events
        .message()
        .await
        .expect("the stream is good")
        .expect("there is an event");
    assert!(!event.diagnostic.is_empty());
    let mut events = client
        .invoke_action(pb::invoke_action::Request::default())
        .await
        .expect("it answers")
        .into_inner();
    let event = events
        .message()
        .await
        .expect("the stream is good")
        .expect("there is an event");
    match event.r#type {
        Some(pb::invoke_action::event::Type::Completed(completed)) => {
            assert!(!completed.diagnostics.is_empty())
        }
        other => panic!("not the end: {other:?}"),
    }
    let mut bytes = client
        .read_state_bytes(pb::read_state_bytes::Request::default())
        .await
        .expect("it answers")
        .into_inner();
    assert!(
        !bytes
            .message()
            .await
            .expect("the stream is good")
            .expect("an answer")
            .diagnostics
            .is_empty()
    );
    let chunks = futures::stream::iter([pb::write_state_bytes::RequestChunk::default()]);
    let answer = client
        .write_state_bytes(chunks)
        .await
        .expect("it answers")
        .into_inner();
    assert!(!answer.diagnostics.is_empty());
}

impl Notes {
    /// The client with what keeps the process alive.
    fn client_keeping_plugin(self) -> (Client, Plugin, tempfile::TempDir) {
        (self.client, self.plugin, self.folder)
    }
}

#[tokio::test]
async fn calls_that_describe_the_provider_agree_with_each_other() {
    let mut notes = Notes::new().await;
    let metadata = notes
        .client
        .get_metadata(pb::get_metadata::Request {})
        .await
        .expect("it answers")
        .into_inner();
    assert_eq!(metadata.resources[0].type_name, "example_note");
    assert_eq!(
        (
            metadata.actions.len(),
            metadata.list_resources.len(),
            metadata.functions.len()
        ),
        (1, 1, 2)
    );
    let functions = notes
        .client
        .get_functions(pb::get_functions::Request {})
        .await
        .expect("it answers")
        .into_inner();
    let request = pb::get_provider_schema::Request {};
    let schema = notes
        .client
        .get_provider_schema(request)
        .await
        .expect("it answers")
        .into_inner();
    assert_eq!(functions.functions, schema.functions);
    assert!(schema.provider_meta.is_none());
    let identities = notes
        .client
        .get_resource_identity_schemas(pb::get_resource_identity_schemas::Request {});
    let identities = identities.await.expect("it answers").into_inner();
    assert!(identities.identity_schemas["example_note"].identity_attributes[0].required_for_import);
    let request = pb::validate_provider_config::Request {
        config: Some(null()),
    };
    let answer = notes
        .client
        .validate_provider_config(request)
        .await
        .expect("it answers")
        .into_inner();
    assert!(answer.diagnostics.is_empty());
}

#[tokio::test]
async fn a_listing_stops_at_its_limit() {
    let mut notes = Notes::new().await;
    for name in ["a", "b", "c"] {
        notes.create(Object::new().with("name", name)).await;
    }
    for (limit, expected) in [(2, 2), (0, 3)] {
        let request = pb::list_resource::Request {
            type_name: "example_note".to_owned(),
            config: Some(null()),
            include_resource_object: limit == 0,
            limit,
        };
        let mut events = notes
            .client
            .list_resource(request)
            .await
            .expect("it answers")
            .into_inner();
        let mut found = 0;
        while let Some(event) = events.message().await.expect("the stream is good") {
            assert!(
                event.diagnostic.is_empty() && event.identity.is_some(),
                "{event:?}"
            );
            assert_eq!(event.resource_object.is_some(), limit == 0);
            found += 1;
        }
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn functions_name_the_argument_at_fault() {
    let mut notes = Notes::new().await;
    let text = |text: &str| pb::DynamicValue {
        msgpack: tf_provider::msgpack::encode(&Value::from(text), &Type::String)
            .expect("it is a text")
            .into(),
        json: Default::default(),
    };
    let call = |arguments| pb::call_function::Request {
        name: "join_words".to_owned(),
        arguments,
    };
    let answer = notes
        .client
        .call_function(call(vec![text("-"), null()]))
        .await
        .expect("it answers")
        .into_inner();
    assert_eq!(
        answer.error.expect("null is refused").function_argument,
        Some(1)
    );
    let answer = notes
        .client
        .call_function(call(vec![]))
        .await
        .expect("it answers")
        .into_inner();
    assert!(
        answer
            .error
            .expect("one is missing")
            .text
            .contains("takes 1")
    );
}
