//! `pgoutput`, protocol version 1, read from bytes. No input makes it panic.

use bytes::{Buf, Bytes, TryGetError};
use kafka::Lsn;

use super::message::{
    OldRow, Relation, RelationColumn, ReplicaIdentity, ReplicationMessage, Tuple,
};

/// PostgreSQL counts from 2000-01-01, we from 1970-01-01; microseconds between.
pub(super) const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Why bytes are not a message of `pgoutput`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("a message of {kind:?} is cut short")]
    Short { kind: char },
    #[error("a message of {kind:?} has {bytes} bytes too many")]
    Trailing { kind: char, bytes: usize },
    #[error("there is no message {0:?} in protocol version 1")]
    UnknownMessage(char),
    #[error("a message of {kind:?} has an unknown {what} {value:?}")]
    UnknownValue {
        kind: char,
        what: &'static str,
        value: char,
    },
    #[error("a name in a message of {kind:?} is not UTF-8; the database's encoding must be known")]
    NotUtf8 { kind: char },
    #[error("a message of {kind:?} has a time out of range")]
    Time { kind: char },
    #[error("an empty message")]
    Empty,
}

/// Reads one message of the output plugin. Rows stay slices of `data`.
///
/// # Errors
/// Where `data` is not exactly one message as PostgreSQL's documentation describes it.
pub fn decode(data: Bytes) -> Result<ReplicationMessage, DecodeError> {
    let mut reader = Reader::new(data)?;
    let message = match reader.kind {
        'B' => reader.begin(),
        'C' => reader.commit(),
        'I' => reader.insert(),
        'U' => reader.update(),
        'D' => reader.delete(),
        'T' => reader.truncate(),
        'R' => reader.relation(),
        'Y' => reader.type_name(),
        'O' => reader.origin(),
        'M' => reader.message(),
        kind => Err(DecodeError::UnknownMessage(kind)),
    }?;
    reader.end()?;
    Ok(message)
}

/// Microseconds since 2000 as microseconds since 1970.
pub(super) fn since_1970_us(postgres_us: i64, kind: char) -> Result<i64, DecodeError> {
    postgres_us
        .checked_add(POSTGRES_EPOCH_US)
        .ok_or(DecodeError::Time { kind })
}

struct Reader {
    kind: char,
    data: Bytes,
}

impl Reader {
    fn new(mut data: Bytes) -> Result<Self, DecodeError> {
        let kind = char::from(data.try_get_u8().map_err(|_| DecodeError::Empty)?);
        Ok(Self { kind, data })
    }

    fn begin(&mut self) -> Result<ReplicationMessage, DecodeError> {
        Ok(ReplicationMessage::Begin {
            final_lsn: self.lsn()?,
            commit_time_us: self.time_us()?,
            xid: self.u32()?,
        })
    }

    fn commit(&mut self) -> Result<ReplicationMessage, DecodeError> {
        let flags = self.u8()?;
        if flags != 0 {
            return Err(self.unknown("flag", flags));
        }
        Ok(ReplicationMessage::Commit {
            commit_lsn: self.lsn()?,
            end_lsn: self.lsn()?,
            commit_time_us: self.time_us()?,
        })
    }

    fn insert(&mut self) -> Result<ReplicationMessage, DecodeError> {
        let relation = self.u32()?;
        match self.u8()? {
            b'N' => Ok(ReplicationMessage::Insert {
                relation,
                new: self.tuple()?,
            }),
            other => Err(self.unknown("row", other)),
        }
    }

    fn update(&mut self) -> Result<ReplicationMessage, DecodeError> {
        let relation = self.u32()?;
        let mut row = self.u8()?;
        let old = if row == b'N' {
            None
        } else {
            let old = self.old_row(row)?;
            row = self.u8()?;
            Some(old)
        };
        if row != b'N' {
            return Err(self.unknown("row", row));
        }
        Ok(ReplicationMessage::Update {
            relation,
            old,
            new: self.tuple()?,
        })
    }

    fn delete(&mut self) -> Result<ReplicationMessage, DecodeError> {
        let relation = self.u32()?;
        let row = self.u8()?;
        Ok(ReplicationMessage::Delete {
            relation,
            old: self.old_row(row)?,
        })
    }

    fn old_row(&mut self, row: u8) -> Result<OldRow, DecodeError> {
        match row {
            b'K' => Ok(OldRow::Key(self.tuple()?)),
            b'O' => Ok(OldRow::Full(self.tuple()?)),
            other => Err(self.unknown("row", other)),
        }
    }

    fn truncate(&mut self) -> Result<ReplicationMessage, DecodeError> {
        let count = self.u32()?;
        let options = self.u8()?;
        if options > 3 {
            return Err(self.unknown("option", options));
        }
        // The count is checked against what is there before anything is allocated for it.
        let count = usize::try_from(count).map_err(|_| self.short())?;
        if self.data.len() / size_of::<u32>() < count {
            return Err(self.short());
        }
        let relations = (0..count).map(|_| self.u32()).collect::<Result<_, _>>()?;
        Ok(ReplicationMessage::Truncate {
            relations,
            cascade: options & 1 != 0,
            restart_identity: options & 2 != 0,
        })
    }

    fn relation(&mut self) -> Result<ReplicationMessage, DecodeError> {
        let oid = self.u32()?;
        let schema = self.schema()?;
        let name = self.text()?;
        let replica_identity = match self.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            other => return Err(self.unknown("replica identity", other)),
        };
        let columns = (0..self.u16()?)
            .map(|_| self.column())
            .collect::<Result<_, _>>()?;
        Ok(ReplicationMessage::Relation(Relation {
            oid,
            schema,
            name,
            replica_identity,
            columns,
        }))
    }

    fn column(&mut self) -> Result<RelationColumn, DecodeError> {
        let flags = self.u8()?;
        if flags > 1 {
            return Err(self.unknown("column flag", flags));
        }
        Ok(RelationColumn {
            name: self.text()?,
            type_oid: self.u32()?,
            type_modifier: self.i32()?,
            key: flags == 1,
        })
    }

    fn type_name(&mut self) -> Result<ReplicationMessage, DecodeError> {
        Ok(ReplicationMessage::Type {
            oid: self.u32()?,
            schema: self.schema()?,
            name: self.text()?,
        })
    }

    fn origin(&mut self) -> Result<ReplicationMessage, DecodeError> {
        Ok(ReplicationMessage::Origin {
            commit_lsn: self.lsn()?,
            name: self.text()?,
        })
    }

    fn message(&mut self) -> Result<ReplicationMessage, DecodeError> {
        let flags = self.u8()?;
        if flags > 1 {
            return Err(self.unknown("flag", flags));
        }
        Ok(ReplicationMessage::Message {
            transactional: flags == 1,
            lsn: self.lsn()?,
            prefix: self.text()?,
            content: {
                let len = self.u32()?;
                self.bytes(len)?
            },
        })
    }

    /// Walks over the cells once, so that reading them later cannot fail.
    fn tuple(&mut self) -> Result<Tuple, DecodeError> {
        let columns = self.u16()?;
        let (mut rest, mut unchanged) = (&self.data[..], false);
        for _ in 0..columns {
            let (&kind, after) = rest.split_first().ok_or_else(|| self.short())?;
            rest = after;
            match kind {
                b'n' => {}
                b'u' => unchanged = true,
                b't' | b'b' => {
                    let len = rest.try_get_u32().map_err(|_| self.short())?;
                    rest = usize::try_from(len)
                        .ok()
                        .and_then(|len| rest.get(len..))
                        .ok_or_else(|| self.short())?;
                }
                other => return Err(self.unknown("cell", other)),
            }
        }
        let walked = self.data.len() - rest.len();
        Ok(Tuple::walked(
            columns,
            unchanged,
            self.data.split_to(walked),
        ))
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.data.is_empty() {
            return Ok(());
        }
        Err(DecodeError::Trailing {
            kind: self.kind,
            bytes: self.data.len(),
        })
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        let value = self.data.try_get_u8();
        self.whole(value)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        let value = self.data.try_get_u16();
        self.whole(value)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        let value = self.data.try_get_u32();
        self.whole(value)
    }

    fn i32(&mut self) -> Result<i32, DecodeError> {
        let value = self.data.try_get_i32();
        self.whole(value)
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        let value = self.data.try_get_u64();
        self.whole(value).map(Lsn)
    }

    fn time_us(&mut self) -> Result<i64, DecodeError> {
        let value = self.data.try_get_i64();
        since_1970_us(self.whole(value)?, self.kind)
    }

    fn bytes(&mut self, len: u32) -> Result<Bytes, DecodeError> {
        match usize::try_from(len) {
            Ok(len) if len <= self.data.len() => Ok(self.data.split_to(len)),
            _ => Err(self.short()),
        }
    }

    /// A schema's name; `pg_catalog` is sent as nothing.
    fn schema(&mut self) -> Result<String, DecodeError> {
        let name = self.text()?;
        Ok(if name.is_empty() {
            "pg_catalog".to_owned()
        } else {
            name
        })
    }

    /// Text up to a zero byte.
    fn text(&mut self) -> Result<String, DecodeError> {
        let end = self.data.iter().position(|&byte| byte == 0);
        let text = self.data.split_to(end.ok_or_else(|| self.short())?);
        self.data.advance(1);
        String::from_utf8(text.into()).map_err(|_| DecodeError::NotUtf8 { kind: self.kind })
    }

    fn whole<T>(&self, value: Result<T, TryGetError>) -> Result<T, DecodeError> {
        value.map_err(|_| self.short())
    }

    fn short(&self) -> DecodeError {
        DecodeError::Short { kind: self.kind }
    }

    fn unknown(&self, what: &'static str, value: u8) -> DecodeError {
        DecodeError::UnknownValue {
            kind: self.kind,
            what,
            value: char::from(value),
        }
    }
}

#[cfg(test)]
mod tests;
