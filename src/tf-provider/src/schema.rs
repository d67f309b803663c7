//! Schemas of providers, resources, data sources, ephemeral resources, list resources and actions.
//!
//! [`Schema::check`](crate::schema::Schema::check) holds every rule that Terraform enforces when it loads schemas; one
//! broken rule makes a whole provider unusable there, so test each schema with it.

use crate::attribute::Attribute;
use crate::types::Type;

/// How nested blocks repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockNesting {
    /// One block; optional or required by `min_items`.
    Single,
    /// One block that is an object of nulls when it is absent.
    Group,
    /// Blocks in order.
    List,
    /// Blocks without order.
    Set,
    /// Blocks with one label.
    Map,
}

/// A nested block with its repetition.
#[derive(Debug, Clone)]
pub struct NestedBlock {
    /// What is inside.
    pub block: Block,
    /// How it repeats.
    pub nesting: BlockNesting,
    /// Least number of blocks.
    pub min_items: i64,
    /// Greatest number of blocks; 0 for no limit.
    pub max_items: i64,
}

impl NestedBlock {
    fn new(nesting: BlockNesting, block: Block) -> Self {
        Self {
            block,
            nesting,
            min_items: 0,
            max_items: 0,
        }
    }

    /// At most one block.
    pub fn single(block: Block) -> Self {
        Self::new(BlockNesting::Single, block)
    }

    /// One block, an object of nulls when absent.
    pub fn group(block: Block) -> Self {
        Self::new(BlockNesting::Group, block)
    }

    /// Blocks in order.
    pub fn list(block: Block) -> Self {
        Self::new(BlockNesting::List, block)
    }

    /// Blocks without order.
    pub fn set(block: Block) -> Self {
        Self::new(BlockNesting::Set, block)
    }

    /// Blocks with one label.
    pub fn map(block: Block) -> Self {
        Self::new(BlockNesting::Map, block)
    }

    /// Least and greatest number (0: no limit); for a required single block 1 and 1.
    pub fn items(mut self, min: i64, max: i64) -> Self {
        self.min_items = min;
        self.max_items = max;
        self
    }

    /// The type of the attribute that the block is in values.
    pub fn ty(&self) -> Type {
        let object = self.block.ty();
        match self.nesting {
            BlockNesting::Single | BlockNesting::Group => object,
            BlockNesting::Set => Type::set(object),
            // Terraform uses tuple and object here, whose shape is in the value, when a dynamic type is inside.
            BlockNesting::List | BlockNesting::Map if object.has_dynamic() => Type::Dynamic,
            BlockNesting::List => Type::list(object),
            BlockNesting::Map => Type::map(object),
        }
    }
}

/// Attributes and nested blocks.
#[derive(Debug, Clone, Default)]
pub struct Block {
    /// Attributes in the order of the schema.
    pub attributes: Vec<(String, Attribute)>,
    /// Nested blocks in the order of the schema.
    pub blocks: Vec<(String, NestedBlock)>,
    /// Documentation, Markdown.
    pub description: String,
    /// Deprecated, with what to use instead.
    pub deprecated: Option<String>,
}

impl Block {
    /// Without anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an attribute.
    pub fn attribute(mut self, name: impl Into<String>, attribute: Attribute) -> Self {
        self.attributes.push((name.into(), attribute));
        self
    }

    /// Adds a nested block.
    pub fn block(mut self, name: impl Into<String>, block: NestedBlock) -> Self {
        self.blocks.push((name.into(), block));
        self
    }

    /// Documentation, Markdown.
    pub fn describe(mut self, text: impl Into<String>) -> Self {
        self.description = text.into();
        self
    }

    /// The object type of its values.
    pub fn ty(&self) -> Type {
        let attributes = self
            .attributes
            .iter()
            .map(|(name, attribute)| (name.clone(), attribute.ty()));
        let blocks = self
            .blocks
            .iter()
            .map(|(name, block)| (name.clone(), block.ty()));
        Type::object(attributes.chain(blocks))
    }
}

/// A block with a version.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    /// Counter of incompatible changes of the stored shape.
    pub version: i64,
    /// The content.
    pub block: Block,
}

impl Schema {
    /// Version 0, without anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the version.
    pub fn version(mut self, version: i64) -> Self {
        self.version = version;
        self
    }

    /// Adds an attribute.
    pub fn attribute(mut self, name: impl Into<String>, attribute: Attribute) -> Self {
        self.block = self.block.attribute(name, attribute);
        self
    }

    /// Adds a nested block.
    pub fn block(mut self, name: impl Into<String>, block: NestedBlock) -> Self {
        self.block = self.block.block(name, block);
        self
    }

    /// Documentation, Markdown.
    pub fn describe(mut self, text: impl Into<String>) -> Self {
        self.block.description = text.into();
        self
    }

    /// Marks the whole thing deprecated and says what to use instead.
    pub fn deprecate(mut self, message: impl Into<String>) -> Self {
        self.block.deprecated = Some(message.into());
        self
    }

    /// The object type of its values.
    pub fn ty(&self) -> Type {
        self.block.ty()
    }
}

/// One attribute of an identity.
#[derive(Debug, Clone)]
pub struct IdentityAttribute {
    /// Name.
    pub name: String,
    /// String, number, bool, or list of those.
    pub ty: Type,
    /// The user must give it in an import block; otherwise may.
    pub required_for_import: bool,
    /// Documentation.
    pub description: String,
}

/// Small permanent key of a resource, apart from its state.
#[derive(Debug, Clone, Default)]
pub struct IdentitySchema {
    /// Counter of incompatible changes.
    pub version: i64,
    /// The attributes.
    pub attributes: Vec<IdentityAttribute>,
}

impl IdentitySchema {
    /// Without attributes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one that an import must give.
    pub fn required(
        self,
        name: impl Into<String>,
        ty: Type,
        description: impl Into<String>,
    ) -> Self {
        self.add(name.into(), ty, true, description.into())
    }

    /// Adds one that an import may give.
    pub fn optional(
        self,
        name: impl Into<String>,
        ty: Type,
        description: impl Into<String>,
    ) -> Self {
        self.add(name.into(), ty, false, description.into())
    }

    fn add(
        mut self,
        name: String,
        ty: Type,
        required_for_import: bool,
        description: String,
    ) -> Self {
        self.attributes.push(IdentityAttribute {
            name,
            ty,
            required_for_import,
            description,
        });
        self
    }

    /// The object type of its values.
    pub fn ty(&self) -> Type {
        Type::object(
            self.attributes
                .iter()
                .map(|attribute| (attribute.name.clone(), attribute.ty.clone())),
        )
    }
}

impl Schema {
    /// True when the root object has an attribute of this name.
    pub fn has_attribute(&self, name: &str) -> bool {
        self.block.attributes.iter().any(|(own, _)| own == name)
    }
}
