//! A record's key: Debezium's JSON of the primary key's columns, in index order.

use super::value::{self, Kind};
use super::write_string;

/// A column of a table's primary key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    pub name: String,
    pub kind: Kind,
    /// As a cast names it: `character varying(200)`.
    pub type_name: String,
}

impl KeyColumn {
    /// Its name and the form of its values in a key: another form, and the same row has another
    /// key.
    #[must_use]
    pub fn named_form(&self) -> (String, String) {
        let shows_modifier = self.kind == Kind::Numeric || self.type_name.starts_with("character(");
        let form = if shows_modifier {
            self.type_name.clone()
        } else {
            format!("{:?}", self.kind).to_lowercase()
        };
        (self.name.clone(), form)
    }
}

/// Writes the key of a row from the text of its key columns.
pub fn write<'a>(out: &mut Vec<u8>, columns: &[KeyColumn], texts: impl Iterator<Item = &'a str>) {
    out.push(b'{');
    for (number, (column, text)) in columns.iter().zip(texts).enumerate() {
        if number > 0 {
            out.push(b',');
        }
        write_string(out, &column.name);
        out.push(b':');
        value::write_text(out, column.kind, text);
    }
    out.push(b'}');
}

/// The key columns' text from a record's key; none where it is no key of these columns (of
/// another primary key, or written by somebody else).
#[must_use]
pub fn parse(columns: &[KeyColumn], key: &[u8]) -> Option<Vec<String>> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(key).ok()?;
    (object.len() == columns.len()).then_some(())?;
    columns
        .iter()
        .map(|column| value::invert(column.kind, object.get(&column.name)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn column(name: &str, kind: Kind) -> KeyColumn {
        KeyColumn {
            name: name.to_owned(),
            kind,
            type_name: String::new(),
        }
    }

    #[test]
    fn columns_stand_in_index_order() {
        let columns = [column("b", Kind::Text), column("a", Kind::Integer)];
        let mut out = Vec::new();
        write(&mut out, &columns, ["x\"y", "5"].into_iter());
        assert_eq!(out, br#"{"b":"x\"y","a":5}"#);
    }

    #[test]
    fn a_key_of_other_columns_is_none_of_ours() {
        let columns = [column("id", Kind::Integer)];
        for key in [
            &b"{}"[..],
            b"{\"id\":5,\"x\":1}",
            b"{\"other\":5}",
            b"{\"id\":\"5\"}",
            b"5",
            b"",
        ] {
            assert_eq!(parse(&columns, key), None);
        }
    }

    proptest! {
        #[test]
        fn a_written_key_is_read_again(id: i64, name: String) {
            let columns = [column("id", Kind::Integer), column("name", Kind::Text)];
            let mut out = Vec::new();
            let texts = [id.to_string(), name];
            write(&mut out, &columns, texts.iter().map(String::as_str));
            prop_assert_eq!(parse(&columns, &out), Some(texts.to_vec()));
        }
    }
}
