//! The managed resource `example_note`: every kind of attribute that a schema can hold.

use std::time::Duration;

use tf_provider::*;

use crate::store::{Note, Store};

pub struct NoteResource;

/// State of a note; `tags` and the like stay null when the note has none.
pub fn to_state(note: &Note, value: &mut Object) {
    value
        .set("id", &note.id)
        .set("name", &note.name)
        .set("text", &note.text)
        .set("revision", note.revision);
    value.set("secret_length", note.secret_length);
    value.set(
        "ratio",
        note.ratio
            .as_deref()
            .and_then(|ratio| ratio.parse::<Number>().ok()),
    );
    value.set("tags", note.tags.clone());
    let settings = note.mode.as_ref().map(|mode| {
        Object::new()
            .with("mode", mode)
            .with("level", note.level)
            .with("etag", format!("{mode}-{}", note.revision))
    });
    value.set("settings", settings);
    let part = |path: &String| Object::new().with("path", path).with("size", path.len());
    value.set(
        "part",
        note.parts
            .as_ref()
            .map(|parts| parts.iter().map(part).collect::<Vec<_>>()),
    );
    let member =
        |(name, role): (&String, &String)| Object::new().with("name", name).with("role", role);
    value.set(
        "members",
        note.members
            .as_ref()
            .map(|members| members.iter().map(member).collect::<Vec<_>>()),
    );
}

fn from_plan(change: &Change, revision: u64) -> Note {
    let planned = &change.planned;
    let settings = planned.object("settings");
    let known = |name: &str| !planned.is_null(name);
    Note {
        id: format!("note-{}", planned.string("name")),
        name: planned.string("name"),
        text: planned.string("text"),
        ratio: planned
            .get("ratio")
            .as_number()
            .map(|number| number.as_text().to_owned()),
        tags: known("tags").then(|| planned.strings("tags")),
        mode: settings
            .and_then(|settings| settings.str("mode"))
            .map(str::to_owned),
        level: settings.and_then(|settings| settings.u64("level")),
        parts: Some(
            planned
                .objects("part")
                .iter()
                .map(|part| part.string("path"))
                .collect(),
        ),
        members: known("members").then(|| {
            let members = planned.objects("members").into_iter();
            members
                .map(|member| (member.string("name"), member.string("role")))
                .collect()
        }),
        revision,
        // The only place that sees a write-only value is the configuration at apply.
        secret_length: change
            .config
            .str("secret")
            .map(|secret| secret.len() as u64),
    }
}

/// Faults that tests ask for, and slow work that notices an interrupt.
async fn finish(cx: &Context<Store>, change: &Change) -> Result<(), Diagnostics> {
    match change.planned.str("fault") {
        Some("fail") => {
            return Err(Diagnostics::error_at(
                "fault",
                "Asked to fail",
                "The note exists already.",
            ));
        }
        Some("panic") => panic!("asked to panic"),
        _ => {}
    }
    let delay = Duration::from_millis(change.planned.u64("delay_ms").unwrap_or(0));
    cx.cancel().guard(tokio::time::sleep(delay)).await
}

#[async_trait]
impl Resource<Store> for NoteResource {
    fn type_name(&self) -> &str {
        "example_note"
    }

    fn schema(&self) -> Schema {
        let level = Attribute::number().optional().default(1).whole_in(1..=9);
        let settings = [
            (
                "mode",
                Attribute::string()
                    .required()
                    .one_of_ignoring_case(&["plain", "fancy"]),
            ),
            ("level", level),
            ("etag", Attribute::string().computed()),
        ];
        let members = [
            ("name", Attribute::string().required()),
            ("role", Attribute::string().optional().default("reader")),
        ];
        let part = Block::new()
            .attribute("path", Attribute::string().required().requires_replace())
            .attribute("size", Attribute::number().computed());
        Schema::new()
            .version(1)
            .describe("A note in a folder.")
            .attribute(
                "id",
                Attribute::string()
                    .computed()
                    .use_state_for_unknown()
                    .describe("Id."),
            )
            .attribute(
                "name",
                Attribute::string()
                    .required()
                    .requires_replace()
                    .describe("Name."),
            )
            .attribute("text", Attribute::string().optional().default("empty"))
            .attribute("ratio", Attribute::number().optional())
            .attribute("tags", Attribute::set(Type::String).optional())
            .attribute(
                "secret",
                Attribute::string().optional().sensitive().write_only(),
            )
            .attribute("secret_version", Attribute::number().optional())
            .attribute("secret_length", Attribute::number().computed())
            .attribute(
                "settings",
                Attribute::nested(Nesting::Single, settings).optional(),
            )
            .attribute(
                "members",
                Attribute::nested(Nesting::Set, members).optional(),
            )
            .attribute("anything", Attribute::dynamic().optional())
            .attribute("fault", Attribute::string().optional())
            .attribute("delay_ms", Attribute::number().optional())
            .attribute("revision", Attribute::number().computed())
            .block("part", NestedBlock::list(part))
    }

    fn identity(&self) -> Option<IdentitySchema> {
        Some(IdentitySchema::new().required("name", Type::String, "Name of the note."))
    }

    async fn validate(&self, _cx: &Context<Store>, config: &Object, report: &mut Diagnostics) {
        if config.str("name").is_some_and(|name| name.contains(' ')) {
            report.push_error("name", "Invalid name", "A name has no spaces.");
        }
    }

    async fn plan(&self, cx: &Context<Store>, plan: &mut Plan) -> Result<(), Diagnostics> {
        if plan.destroy {
            cx.warn(Diagnostic::warning(
                "Note will be deleted",
                "Its text is lost.",
            ));
        }
        if plan.is_create() {
            plan.planned.set("id", Value::unknown_not_null());
        }
        Ok(())
    }

    async fn create(
        &self,
        cx: &Context<Store>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let note = from_plan(change, 1);
        cx.client()?.write(&note)?;
        tracing::info!(note = note.name, "created a note");
        to_state(&note, &mut state.value);
        state.private = b"made by create".to_vec();
        state.keep();
        finish(cx, change).await
    }

    async fn read(
        &self,
        cx: &Context<Store>,
        state: &mut ResourceState,
    ) -> Result<Presence, Diagnostics> {
        let id = match &state.identity {
            Some(identity) if state.value.is_null("id") => {
                format!("note-{}", identity.string("name"))
            }
            _ => state.value.string("id"),
        };
        match cx.client()?.read(&id)? {
            None => Ok(Presence::Gone),
            Some(note) => {
                to_state(&note, &mut state.value);
                Ok(Presence::Present)
            }
        }
    }

    async fn update(
        &self,
        cx: &Context<Store>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let prior = change
            .prior
            .as_ref()
            .and_then(|prior| prior.u64("revision"))
            .unwrap_or(0);
        let note = from_plan(change, prior + 1);
        if change.planned.str("fault") == Some("early") {
            return Err(Diagnostics::error("Asked to fail", "Nothing was changed."));
        }
        cx.client()?.write(&note)?;
        to_state(&note, &mut state.value);
        finish(cx, change).await
    }

    async fn delete(&self, cx: &Context<Store>, change: &Change) -> Result<(), Diagnostics> {
        let id = change
            .prior
            .as_ref()
            .map(|prior| prior.string("id"))
            .unwrap_or_default();
        cx.client()?.delete(&id)
    }

    async fn upgrade(&self, _version: i64, old: &RawState) -> Result<Object, Diagnostics> {
        // Version 0 called the text `body`.
        let mut object = old.decode(&self.schema())?;
        object.set(
            "text",
            old.json()?
                .get("body")
                .and_then(|body| body.as_str())
                .unwrap_or("empty"),
        );
        Ok(object)
    }

    async fn move_state(
        &self,
        _cx: &Context<Store>,
        source: &MoveSource,
    ) -> Result<Option<ResourceState>, Diagnostics> {
        if source.type_name != "terraform_data" {
            return Ok(None);
        }
        let name = source
            .state
            .json()?
            .get("input")
            .and_then(|input| input["value"].as_str().map(str::to_owned));
        let name = name.unwrap_or_default();
        let value = Object::new()
            .with("name", &name)
            .with("id", format!("note-{name}"));
        Ok(Some(ResourceState::new(value)))
    }
}
