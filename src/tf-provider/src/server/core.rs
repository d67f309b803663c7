//! What all calls share: the provider with its indexed parts, the state of a connection, one call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::context::{Cancel, ClientCapabilities, Context};
use crate::diagnostics::Diagnostics;
use crate::function::{Function, Signature};
use crate::provider::{Action, DataSource, EphemeralResource, ListResource, Provider};
use crate::resource::Resource;
use crate::schema::{IdentitySchema, Schema};
use crate::schema_check::SchemaKind;

/// A part of the provider with its schema, which is built once.
pub(crate) struct Entry<T: ?Sized> {
    pub(crate) part: Box<T>,
    pub(crate) schema: Schema,
    pub(crate) identity: Option<IdentitySchema>,
}

type Parts<T> = BTreeMap<String, Entry<T>>;

/// The provider and everything it offers, by name.
pub(crate) struct Core<P: Provider> {
    pub(crate) provider: P,
    pub(crate) schema: Schema,
    pub(crate) resources: Parts<dyn Resource<P::Client>>,
    pub(crate) data_sources: Parts<dyn DataSource<P::Client>>,
    pub(crate) ephemeral_resources: Parts<dyn EphemeralResource<P::Client>>,
    pub(crate) list_resources: Parts<dyn ListResource<P::Client>>,
    pub(crate) actions: Parts<dyn Action<P::Client>>,
    pub(crate) functions: BTreeMap<String, (Box<dyn Function>, Signature)>,
}

fn index<T: ?Sized>(
    parts: Vec<Box<T>>,
    describe: impl Fn(&T) -> (String, Schema, Option<IdentitySchema>),
) -> Parts<T> {
    let entry = |part: Box<T>| {
        let (name, schema, identity) = describe(&part);
        (
            name,
            Entry {
                part,
                schema,
                identity,
            },
        )
    };
    parts.into_iter().map(entry).collect()
}

impl<P: Provider> Core<P> {
    pub(crate) fn new(provider: P) -> Self {
        Self {
            schema: provider.schema(),
            resources: index(provider.resources(), |part| {
                (part.type_name().to_owned(), part.schema(), part.identity())
            }),
            data_sources: index(provider.data_sources(), |part| {
                (part.type_name().to_owned(), part.schema(), None)
            }),
            ephemeral_resources: index(provider.ephemeral_resources(), |part| {
                (part.type_name().to_owned(), part.schema(), None)
            }),
            list_resources: index(provider.list_resources(), |part| {
                (part.type_name().to_owned(), part.schema(), None)
            }),
            actions: index(provider.actions(), |part| {
                (part.type_name().to_owned(), part.schema(), None)
            }),
            functions: provider
                .functions()
                .into_iter()
                .map(|function| {
                    let signature = function.signature();
                    (function.name().to_owned(), (function, signature))
                })
                .collect(),
            provider,
        }
    }

    /// Every broken schema rule of the provider, one line each.
    pub(crate) fn check(&self) -> Vec<String> {
        let mut problems: Vec<String> = Vec::new();
        let mut note = |owner: &str, found: Vec<String>| {
            problems.extend(
                found
                    .into_iter()
                    .map(|problem| format!("{owner}: {problem}")),
            );
        };
        let prefix = format!("{}_", self.provider.name());
        note("provider", self.schema.check(SchemaKind::Provider));
        let named = |name: &str| {
            if name.starts_with(&prefix) {
                Vec::new()
            } else {
                vec![format!("the name must start with {prefix}")]
            }
        };
        for (name, entry) in &self.resources {
            note(name, named(name));
            note(name, entry.schema.check(SchemaKind::Resource));
            note(
                name,
                entry
                    .identity
                    .as_ref()
                    .map(IdentitySchema::check)
                    .unwrap_or_default(),
            );
        }
        for (name, entry) in &self.data_sources {
            note(name, named(name));
            note(name, entry.schema.check(SchemaKind::DataSource));
        }
        for (name, entry) in &self.ephemeral_resources {
            note(name, named(name));
            note(name, entry.schema.check(SchemaKind::Ephemeral));
        }
        for (name, entry) in &self.actions {
            note(name, named(name));
            note(name, entry.schema.check(SchemaKind::Config));
        }
        for (name, entry) in &self.list_resources {
            note(name, entry.schema.check(SchemaKind::Config));
            if self
                .resources
                .get(name)
                .is_none_or(|resource| resource.identity.is_none())
            {
                note(
                    name,
                    vec![
                        "a list resource needs a managed resource of its name with an identity"
                            .to_owned(),
                    ],
                );
            }
        }
        for (name, (_, signature)) in &self.functions {
            let parameters = signature.parameters.iter().chain(&signature.variadic);
            let mut seen = std::collections::BTreeSet::new();
            let twice = parameters.filter(|parameter| !seen.insert(parameter.name.clone()));
            note(
                name,
                twice
                    .map(|parameter| format!("parameter {} occurs twice", parameter.name))
                    .collect(),
            );
        }
        problems
    }
}

/// State of one connection: Terraform opens one for each provider block and process, so nothing of one
/// configuration reaches another, also not in a server that outlives many commands.
pub(crate) struct Session<C> {
    client: Mutex<Option<Arc<C>>>,
    cancel: Mutex<Cancel>,
    terraform_version: Mutex<String>,
}

impl<C> Default for Session<C> {
    fn default() -> Self {
        Self {
            client: Mutex::default(),
            cancel: Mutex::default(),
            terraform_version: Mutex::default(),
        }
    }
}

/// The guarded values are replaced whole, so a panic of another holder cannot leave them half-made.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C> Session<C> {
    pub(crate) fn set_client(&self, client: Option<C>) {
        *locked(&self.client) = client.map(Arc::new);
    }

    pub(crate) fn set_terraform_version(&self, version: String) {
        *locked(&self.terraform_version) = version;
    }

    /// Fires the signal of all running calls; later calls get a fresh one, since the server keeps serving.
    pub(crate) fn stop(&self) {
        std::mem::take(&mut *locked(&self.cancel)).cancel();
    }
}

/// One call in progress.
pub(crate) struct Call<P: Provider> {
    pub(crate) core: Arc<Core<P>>,
    pub(crate) session: Arc<Session<P::Client>>,
    pub(crate) warnings: Arc<Mutex<Diagnostics>>,
}

impl<P: Provider> Call<P> {
    /// The context for a handler; made once for each call so that a stop reaches exactly the running ones.
    pub(crate) fn context(&self, capabilities: ClientCapabilities) -> Context<P::Client> {
        let client = locked(&self.session.client).clone();
        let cancel = locked(&self.session.cancel).clone();
        let version = locked(&self.session.terraform_version).clone();
        Context::new(client, cancel, capabilities).for_call(version, Arc::clone(&self.warnings))
    }

    pub(crate) fn take_warnings(warnings: &Mutex<Diagnostics>) -> Diagnostics {
        std::mem::take(&mut *locked(warnings))
    }
}

/// Finds a part by name.
pub(crate) fn find<'a, T: ?Sized>(
    parts: &'a Parts<T>,
    kind: &str,
    name: &str,
) -> Result<&'a Entry<T>, Diagnostics> {
    parts.get(name).ok_or_else(|| {
        Diagnostics::error(
            format!("Unknown {kind}"),
            format!("This provider has no {kind} {name:?}."),
        )
    })
}
