//! Resources that are one PUT and one GET. [`Managed`] makes a resource of a [`Plain`], [`ByName`] a data source.

use std::marker::PhantomData;
use std::str::FromStr;

use arm_client::Method;
use arm_model::{IdError, Resource as Answer};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tf_provider::{
    Change, Context, DataSource, Diagnostics, IdentitySchema, ImportKey, Object, Plan, Presence,
    Resource, ResourceState, Schema, Type,
};

use crate::Session;
use crate::errors::Fields;
use crate::remote::Remote;
use crate::{fields, timeouts};

/// How an object is taken away.
pub(crate) enum Removal {
    /// `DELETE` on the object.
    Delete,
    /// `POST …/remove`, which looks whether anything still depends on it.
    Remove,
}

/// What is particular to a resource that is one PUT and one GET.
#[async_trait]
pub(crate) trait Plain: Send + Sync + 'static {
    /// Type name with prefix.
    const TYPE: &'static str;
    /// What it is, for people.
    const WHAT: &'static str;
    /// Properties of the service and the attributes they come from.
    const FIELDS: Fields;
    /// Attributes that name an object.
    const KEYS: &'static [&'static str];
    /// How it is taken away.
    const REMOVAL: Removal;
    /// Whether [`Plain::after_change`] does something that shows in an answer.
    const HAS_MORE_AFTER_A_CHANGE: bool = false;
    /// Attributes whose change [`Plain::after_change`] carries out: until it has, they are not in the state.
    const LATER: &'static [&'static str] = &[];
    /// Properties in answers.
    type Properties: DeserializeOwned + Send + Sync;
    /// Its id.
    type Id: FromStr<Err = IdError> + ToString + Send + Sync;

    fn schema() -> Schema;
    /// The id that an object of these arguments has.
    fn id(session: &Session, object: &Object) -> Result<Self::Id, Diagnostics>;
    /// Body of the PUT.
    fn body(object: &Object) -> Json;
    /// Method and body that change it; `None` when nothing that the service knows has changed.
    fn change(change: &Change) -> Option<(Method, Json)>;
    /// Attributes from an answer.
    fn fill(id: &Self::Id, answer: &Answer<Self::Properties>, object: &mut Object);
    /// Adds write-only arguments to the body of a creation; they are in the configuration only.
    fn add_secrets(_config: &Object, _body: &mut Json) {}
    /// Sets computed attributes that a plan can tell already.
    fn foresee(_plan: &mut Plan) {}
    /// What a change needs beyond its request.
    async fn after_change(
        _remote: &Remote<'_>,
        _id: &Self::Id,
        _change: &Change,
    ) -> Result<(), Diagnostics> {
        Ok(())
    }
    /// Checks of arguments against one another.
    fn validate(_config: &Object, _report: &mut Diagnostics) {}
    /// Checks against what exists already, at plan time.
    async fn cross_check(_session: &Session, _planned: &Object) -> Result<(), Diagnostics> {
        Ok(())
    }
}

/// The identity that all resources share: the ARM id.
pub(crate) fn identity() -> IdentitySchema {
    IdentitySchema::new().required("id", Type::String, "ARM id.")
}

/// Reads the id out of an import, and refuses one of another kind.
pub(crate) fn import_stub<T: FromStr<Err = IdError> + ToString>(
    what: &str,
    key: &ImportKey,
) -> Result<ResourceState, Diagnostics> {
    let text = key.id_or("id")?;
    let id: T = text.parse().map_err(|error: IdError| {
        Diagnostics::error(
            "The import id is not fit",
            format!("It must be the ARM id of a {what}: {error}."),
        )
    })?;
    Ok(ResourceState::new(Object::new().with("id", id.to_string())))
}

/// Reads the id out of the state.
pub(crate) fn stored_id<T: FromStr<Err = IdError>>(object: &Object) -> Result<T, Diagnostics> {
    object.require_str("id")?.parse().map_err(|error: IdError| {
        Diagnostics::error_at("id", "The stored id can't be read", format!("{error}."))
    })
}

/// The managed resource of a [`Plain`].
pub(crate) struct Managed<P>(PhantomData<fn() -> P>);

impl<P> Managed<P> {
    pub(crate) fn new() -> Self {
        Managed(PhantomData)
    }
}

#[async_trait]
impl<P: Plain> Resource<Session> for Managed<P> {
    fn type_name(&self) -> &str {
        P::TYPE
    }

    fn schema(&self) -> Schema {
        P::schema()
            .attribute("id", fields::id())
            .attribute("timeouts", timeouts::attribute(timeouts::QUICK))
    }

    fn identity(&self) -> Option<IdentitySchema> {
        Some(identity())
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        P::validate(config, report);
    }

    async fn plan(&self, cx: &Context<Session>, plan: &mut Plan) -> Result<(), Diagnostics> {
        if !plan.destroy {
            P::foresee(plan);
        }
        match cx.client_if_configured() {
            Some(session) if !plan.destroy && plan.has_changes() => {
                P::cross_check(&session, &plan.planned).await
            }
            _ => Ok(()),
        }
    }

    async fn create(
        &self,
        cx: &Context<Session>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let limit = timeouts::of(&change.planned, "create", timeouts::QUICK.create);
        let remote = Remote::new(cx, P::WHAT, P::FIELDS, limit)?;
        let id = P::id(&remote.session, &change.planned)?;
        let text = id.to_string();
        remote.must_not_exist(&text, "name").await?;
        let mut body = P::body(&change.planned);
        P::add_secrets(&change.config, &mut body);
        let answer: Answer<P::Properties> = remote.create(state, &text, &body).await?;
        P::fill(&id, &answer, &mut state.value);
        fields::keep_planned(&change.planned, &mut state.value);
        Ok(())
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        state: &mut ResourceState,
    ) -> Result<Presence, Diagnostics> {
        let limit = timeouts::of(&state.value, "read", timeouts::QUICK.read);
        let remote = Remote::new(cx, P::WHAT, P::FIELDS, limit)?;
        let id: P::Id = stored_id(&state.value)?;
        match remote
            .find::<Answer<P::Properties>>(&id.to_string())
            .await?
        {
            Some(answer) => {
                P::fill(&id, &answer, &mut state.value);
                Ok(Presence::Present)
            }
            None => Ok(Presence::Gone),
        }
    }

    async fn update(
        &self,
        cx: &Context<Session>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let limit = timeouts::of(&change.planned, "update", timeouts::QUICK.update);
        let remote = Remote::new(cx, P::WHAT, P::FIELDS, limit)?;
        let id: P::Id = stored_id(&state.value)?;
        if let Some((method, body)) = P::change(change) {
            let answer: Answer<P::Properties> =
                remote.update(method, &id.to_string(), &body).await?;
            P::fill(&id, &answer, &mut state.value);
            fields::keep_planned(&change.planned, &mut state.value);
            fields::keep_without(state, change.prior.as_ref(), P::LATER);
        }
        P::after_change(&remote, &id, change).await?;
        if P::HAS_MORE_AFTER_A_CHANGE
            && let Some(answer) = remote
                .find::<Answer<P::Properties>>(&id.to_string())
                .await?
        {
            P::fill(&id, &answer, &mut state.value);
            fields::keep_planned(&change.planned, &mut state.value);
        }
        Ok(())
    }

    async fn delete(&self, cx: &Context<Session>, change: &Change) -> Result<(), Diagnostics> {
        let prior = change.prior.clone().unwrap_or_default();
        let limit = timeouts::of(&prior, "delete", timeouts::QUICK.delete);
        let remote = Remote::new(cx, P::WHAT, P::FIELDS, limit)?;
        let id = stored_id::<P::Id>(&prior)?.to_string();
        match P::REMOVAL {
            Removal::Delete => remote.remove(Method::Delete, &id, None).await,
            Removal::Remove => {
                remote
                    .remove(Method::Post, &format!("{id}/remove"), None)
                    .await
            }
        }
    }

    async fn import(
        &self,
        _cx: &Context<Session>,
        key: &ImportKey,
    ) -> Result<ResourceState, Diagnostics> {
        import_stub::<P::Id>(P::WHAT, key)
    }
}

/// The data source that reads a [`Plain`] by its keys.
pub(crate) struct ByName<P>(PhantomData<fn() -> P>);

impl<P> ByName<P> {
    pub(crate) fn new() -> Self {
        ByName(PhantomData)
    }
}

impl<P: Plain> ByName<P> {
    /// Reads it into the state, and gives all that the service says.
    pub(crate) async fn find(
        &self,
        cx: &Context<Session>,
        config: &Object,
        state: &mut Object,
    ) -> Result<Answer<P::Properties>, Diagnostics> {
        let remote = Remote::new(cx, P::WHAT, P::FIELDS, timeouts::QUICK.read)?;
        let id = P::id(&remote.session, config)?;
        let text = id.to_string();
        let Some(answer) = remote.find::<Answer<P::Properties>>(&text).await? else {
            return Err(Diagnostics::error_at(
                "name",
                format!("There is no such {}", P::WHAT),
                format!(
                    "Nothing has the id {text}.\nWhat to do: check the name and where it is looked for."
                ),
            ));
        };
        P::fill(&id, &answer, state);
        state.set("id", text);
        for key in P::KEYS {
            // The user's spelling of the arguments stays.
            state.set(*key, config.get(key).clone());
        }
        Ok(answer)
    }
}

#[async_trait]
impl<P: Plain> DataSource<Session> for ByName<P> {
    fn type_name(&self) -> &str {
        P::TYPE
    }

    fn schema(&self) -> Schema {
        let schema = fields::for_data_source(&P::schema(), P::KEYS);
        schema
            .attribute(
                "id",
                tf_provider::Attribute::string()
                    .computed()
                    .describe("ARM id."),
            )
            .describe(format!("Reads a {} that exists already.", P::WHAT))
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        config: &Object,
        state: &mut Object,
    ) -> Result<(), Diagnostics> {
        self.find(cx, config, state).await?;
        Ok(())
    }
}
