//! A complete provider over a folder of notes. The crate's tests drive it with real Terraform.
#![allow(missing_docs, reason = "a program, not an interface")]

mod extras;
mod note;
mod store;

use std::process::ExitCode;

use store::Store;
use tf_provider::*;

struct Notes;

#[async_trait]
impl Provider for Notes {
    type Client = Store;

    fn name(&self) -> &str {
        "example"
    }

    fn schema(&self) -> Schema {
        Schema::new().attribute(
            "root",
            Attribute::string()
                .required()
                .describe("Folder of the notes."),
        )
    }

    async fn configure(
        &self,
        cx: &Context<Store>,
        config: &Object,
    ) -> Result<Option<Store>, Diagnostics> {
        tracing::info!(terraform = cx.terraform_version(), "configured");
        Ok(config.str("root").map(|root| Store { root: root.into() }))
    }

    fn resources(&self) -> Vec<Box<dyn Resource<Store>>> {
        vec![Box::new(note::NoteResource)]
    }

    fn data_sources(&self) -> Vec<Box<dyn DataSource<Store>>> {
        vec![Box::new(extras::NoteData)]
    }

    fn ephemeral_resources(&self) -> Vec<Box<dyn EphemeralResource<Store>>> {
        vec![Box::new(extras::Token)]
    }

    fn list_resources(&self) -> Vec<Box<dyn ListResource<Store>>> {
        vec![Box::new(extras::NoteList)]
    }

    fn actions(&self) -> Vec<Box<dyn Action<Store>>> {
        vec![Box::new(extras::Touch)]
    }

    fn functions(&self) -> Vec<Box<dyn Function>> {
        vec![Box::new(extras::Join), Box::new(extras::Echo)]
    }
}

fn main() -> ExitCode {
    logging::init();
    run(Notes, "registry.terraform.io/acme/example")
}
