//! The kinds of metric, and the labels that they take.

use ::metrics::{Key, Level, Metadata, Unit, with_recorder};

use crate::types::ShardId;

/// What a metric is called and says.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) unit: Unit,
    pub(super) label: Option<&'static str>,
    pub(super) buckets: &'static [f64],
}

/// Something that only grows.
#[derive(Clone, Copy, Debug)]
pub struct Counter(pub(super) Definition);

/// Something that goes up and down.
#[derive(Clone, Copy, Debug)]
pub struct Gauge(pub(super) Definition);

/// A distribution.
#[derive(Clone, Copy, Debug)]
pub struct Histogram(pub(super) Definition);

/// A label's value: bounded by its type.
pub trait Label: sealed::Sealed {
    /// As it is exposed.
    fn text(self) -> ::metrics::SharedString;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::types::ShardId {}
    impl Sealed for &'static str {}
}

impl Label for ShardId {
    fn text(self) -> ::metrics::SharedString {
        self.to_string().into()
    }
}

impl Label for &'static str {
    fn text(self) -> ::metrics::SharedString {
        self.into()
    }
}

macro_rules! handles {
    ($kind:ident, $register:ident) => {
        impl $kind {
            /// The one series of a metric without label.
            pub fn handle(&self) -> ::metrics::$kind {
                with_recorder(|recorder| recorder.$register(&self.0.key(None), &METADATA))
            }

            /// The series of one label value.
            pub fn of(&self, label: impl Label) -> ::metrics::$kind {
                with_recorder(|recorder| {
                    recorder.$register(&self.0.key(Some(label.text())), &METADATA)
                })
            }

            /// The name that it is exposed under.
            #[must_use]
            pub fn name(&self) -> &'static str {
                self.0.name
            }
        }
    };
}

handles!(Counter, register_counter);
handles!(Gauge, register_gauge);
handles!(Histogram, register_histogram);

static METADATA: Metadata<'static> = Metadata::new("roost", Level::INFO, None);

impl Definition {
    fn key(&self, value: Option<::metrics::SharedString>) -> Key {
        debug_assert_eq!(
            self.label.is_some(),
            value.is_some(),
            "{}: a label is said or not",
            self.name
        );
        match (self.label, value) {
            (Some(label), Some(value)) => {
                Key::from_parts(self.name, vec![::metrics::Label::new(label, value)])
            }
            _ => Key::from_static_name(self.name),
        }
    }
}
