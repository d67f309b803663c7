//! Everything of the example that is not a managed resource.

use std::time::{Duration, SystemTime};

use tf_provider::*;

use crate::note::to_state;
use crate::store::Store;

pub struct NoteData;

#[async_trait]
impl DataSource<Store> for NoteData {
    fn type_name(&self) -> &str {
        "example_note"
    }

    fn schema(&self) -> Schema {
        Schema::new()
            .attribute("name", Attribute::string().required())
            .attribute("text", Attribute::string().computed())
            .attribute("labels", Attribute::map(Type::String).computed())
    }

    async fn read(
        &self,
        cx: &Context<Store>,
        config: &Object,
        state: &mut Object,
    ) -> Result<(), Diagnostics> {
        let name = config.require_str("name")?;
        let Some(note) = cx.client()?.read(&format!("note-{name}"))? else {
            return Err(Diagnostics::error_at(
                "name",
                "Note not found",
                format!("There is no note {name:?}."),
            ));
        };
        state.set("text", note.text).set(
            "labels",
            Value::map([("revision", note.revision.to_string())]),
        );
        Ok(())
    }
}

pub struct Token;

#[async_trait]
impl EphemeralResource<Store> for Token {
    fn type_name(&self) -> &str {
        "example_token"
    }

    fn schema(&self) -> Schema {
        Schema::new()
            .attribute("name", Attribute::string().required())
            .attribute("renew_ms", Attribute::number().optional())
            .attribute("token", Attribute::string().computed().sensitive())
    }

    async fn open(
        &self,
        cx: &Context<Store>,
        config: &Object,
        opened: &mut Opened,
    ) -> Result<(), Diagnostics> {
        let name = config.require_str("name")?;
        cx.client()?.log(&format!("open {name}"))?;
        opened.result.set("token", format!("hush-{name}-hush"));
        opened.private = name.as_bytes().to_vec();
        opened.renew_at = config
            .u64("renew_ms")
            .map(|delay| SystemTime::now() + Duration::from_millis(delay));
        Ok(())
    }

    async fn renew(&self, cx: &Context<Store>, private: &[u8]) -> Result<Renewed, Diagnostics> {
        cx.client()?
            .log(&format!("renew {}", String::from_utf8_lossy(private)))?;
        Ok(Renewed {
            private: b"of the renewal".to_vec(),
            renew_at: None,
        })
    }

    async fn close(&self, cx: &Context<Store>, private: &[u8]) -> Result<(), Diagnostics> {
        cx.client()?
            .log(&format!("close {}", String::from_utf8_lossy(private)))
    }
}

pub struct NoteList;

#[async_trait]
impl ListResource<Store> for NoteList {
    fn type_name(&self) -> &str {
        "example_note"
    }

    fn schema(&self) -> Schema {
        Schema::new().attribute("name_prefix", Attribute::string().optional())
    }

    async fn list(
        &self,
        cx: &Context<Store>,
        config: &Object,
        include_resource: bool,
        sink: &mut ListSink,
    ) -> Result<(), Diagnostics> {
        let prefix = config.string("name_prefix");
        for note in cx
            .client()?
            .all()?
            .iter()
            .filter(|note| note.name.starts_with(&prefix))
        {
            let mut object = Object::new();
            to_state(note, &mut object);
            let item = ListItem {
                identity: Object::new().with("name", &note.name),
                display_name: format!("Note {}", note.name),
                resource: include_resource.then_some(object),
                warning: None,
            };
            if !sink.send(item).await {
                break;
            }
        }
        Ok(())
    }
}

pub struct Touch;

#[async_trait]
impl Action<Store> for Touch {
    fn type_name(&self) -> &str {
        "example_touch"
    }

    fn schema(&self) -> Schema {
        Schema::new()
            .attribute("name", Attribute::string().required())
            .attribute("password", Attribute::string().optional().write_only())
    }

    async fn invoke(
        &self,
        cx: &Context<Store>,
        config: &Object,
        progress: &Progress,
    ) -> Result<(), Diagnostics> {
        let name = config.require_str("name")?;
        progress.send(format!("touching {name}")).await;
        if cx.client()?.read(&format!("note-{name}"))?.is_none() {
            return Err(Diagnostics::error_at(
                "name",
                "Note not found",
                format!("There is no note {name:?}."),
            ));
        }
        cx.client()?.log(&format!(
            "touch {name} with {} letters",
            config.string("password").len()
        ))?;
        progress.send("touched").await;
        Ok(())
    }
}

pub struct Join;

#[async_trait]
impl Function for Join {
    fn name(&self) -> &str {
        "join_words"
    }

    fn signature(&self) -> Signature {
        Signature::new(Type::String, "Joins words.")
            .parameter(Parameter::new("separator", Type::String, "Goes between."))
            .variadic(Parameter::new("words", Type::String, "Words."))
    }

    async fn call(&self, arguments: &[Value]) -> Result<Value, FunctionError> {
        let words: Vec<&str> = arguments.iter().filter_map(Value::as_str).collect();
        match words.split_first() {
            Some((separator, words)) if !words.is_empty() => Ok(words.join(separator).into()),
            _ => Err(FunctionError::argument(0, "nothing to join")),
        }
    }
}

/// Gives back what it gets: shows that no digit is lost.
pub struct Echo;

#[async_trait]
impl Function for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn signature(&self) -> Signature {
        Signature::new(Type::Dynamic, "Gives back its argument.")
            .parameter(Parameter::new("value", Type::Dynamic, "Anything.").allow_null())
    }

    async fn call(&self, arguments: &[Value]) -> Result<Value, FunctionError> {
        Ok(arguments.first().cloned().unwrap_or(Value::Null))
    }
}
