//! What cluster a test wants.

/// What cluster to start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many nodes.
    pub nodes: u16,
    /// How many shards, a power of two.
    pub shards: u32,
    /// TOML for every node, over the defaults.
    pub toml: String,
    /// Waits until no other such cluster runs on this machine.
    pub alone: bool,
}

impl Setup {
    /// So many nodes, eight shards, default settings.
    #[must_use]
    pub fn nodes(nodes: u16) -> Self {
        Self {
            nodes,
            shards: 8,
            toml: String::new(),
            alone: false,
        }
    }

    /// Takes turns with other clusters of this kind: two loaded ones at once tell nothing about either on a small
    /// machine.
    #[must_use]
    pub fn alone(self) -> Self {
        Self {
            alone: true,
            ..self
        }
    }

    /// With these settings.
    #[must_use]
    pub fn toml(self, toml: impl Into<String>) -> Self {
        Self {
            toml: toml.into(),
            ..self
        }
    }

    /// With so many shards.
    #[must_use]
    pub fn shards(self, shards: u32) -> Self {
        Self { shards, ..self }
    }
}
