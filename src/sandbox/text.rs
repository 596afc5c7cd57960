//! Paths and other system strings in JSON: a string when they are UTF-8, as nearly all are, else their bytes.
//!
//! serde's own forms refuse a path that is not UTF-8, and write an `OsString` as a tagged list of numbers.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Utf8(String),
    Bytes(Vec<u8>),
}

impl From<&OsStr> for Text {
    fn from(text: &OsStr) -> Self {
        text.to_str().map_or_else(|| Self::Bytes(text.as_bytes().to_vec()), |text| Self::Utf8(text.to_owned()))
    }
}

impl From<Text> for OsString {
    fn from(text: Text) -> Self {
        match text {
            Text::Utf8(text) => text.into(),
            Text::Bytes(bytes) => Self::from_vec(bytes),
        }
    }
}

pub fn serialize<T: AsRef<OsStr>, S: Serializer>(text: &T, serializer: S) -> Result<S::Ok, S::Error> {
    Text::from(text.as_ref()).serialize(serializer)
}

pub fn deserialize<'de, T: From<OsString>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Text::deserialize(deserializer).map(|text| T::from(OsString::from(text)))
}

/// A list of arguments, or of paths.
pub mod list {
    use super::{Deserialize, Deserializer, OsStr, OsString, Serialize, Serializer, Text};

    pub fn serialize<T: AsRef<OsStr>, S: Serializer>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        list.iter().map(|text| Text::from(text.as_ref())).collect::<Vec<_>>().serialize(serializer)
    }

    pub fn deserialize<'de, T: From<OsString>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
        Ok(Vec::<Text>::deserialize(deserializer)?.into_iter().map(|text| T::from(OsString::from(text))).collect())
    }
}

/// An environment.
pub mod pairs {
    use super::{Deserialize, Deserializer, OsString, Serialize, Serializer, Text};

    pub fn serialize<S: Serializer>(pairs: &[(OsString, OsString)], serializer: S) -> Result<S::Ok, S::Error> {
        let pairs = pairs.iter().map(|(name, value)| (Text::from(name.as_os_str()), Text::from(value.as_os_str())));
        pairs.collect::<Vec<_>>().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(OsString, OsString)>, D::Error> {
        let pairs = Vec::<(Text, Text)>::deserialize(deserializer)?;
        Ok(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Sample {
        #[serde(with = "super")]
        path: PathBuf,
        #[serde(with = "super::pairs")]
        env: Vec<(OsString, OsString)>,
        #[serde(with = "super::list")]
        argv: Vec<OsString>,
    }

    #[test]
    fn any_bytes_survive() {
        let odd = OsString::from_vec(vec![b'/', 0xff, b'a']);
        let sample = Sample {
            path: PathBuf::from(odd.clone()),
            env: vec![("A".into(), odd.clone()), (odd.clone(), "b".into())],
            argv: vec!["plain".into(), odd],
        };
        let json = serde_json::to_string(&sample).unwrap();
        assert_eq!(serde_json::from_str::<Sample>(&json).unwrap(), sample, "{json}");
        assert!(json.contains(r#"["plain",[47,255,97]]"#), "{json}");
    }
}
