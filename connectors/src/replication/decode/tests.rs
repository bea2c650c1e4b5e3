//! What is encoded as PostgreSQL's documentation has it is decoded to the same; anything else
//! is refused without a panic.

use bytes::BufMut;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::message::Cell;
use super::*;

/// A cell that owns its value.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl From<Cell<'_>> for Value {
    fn from(cell: Cell<'_>) -> Self {
        match cell {
            Cell::Null => Self::Null,
            Cell::Unchanged => Self::Unchanged,
            Cell::Text(text) => Self::Text(text.to_vec()),
            Cell::Binary(bytes) => Self::Binary(bytes.to_vec()),
        }
    }
}

fn count<T: TryFrom<usize, Error: std::fmt::Debug>>(len: usize) -> T {
    T::try_from(len).unwrap()
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_schema(out: &mut Vec<u8>, schema: &str) {
    put_text(out, if schema == "pg_catalog" { "" } else { schema });
}

fn put_time(out: &mut Vec<u8>, time_us: i64) {
    out.put_i64(time_us - POSTGRES_EPOCH_US);
}

fn put_cells(out: &mut Vec<u8>, values: &[Value]) {
    for value in values {
        let (kind, bytes) = match value {
            Value::Null => (b'n', None),
            Value::Unchanged => (b'u', None),
            Value::Text(text) => (b't', Some(text)),
            Value::Binary(bytes) => (b'b', Some(bytes)),
        };
        out.put_u8(kind);
        if let Some(bytes) = bytes {
            out.put_u32(count(bytes.len()));
            out.put_slice(bytes);
        }
    }
}

fn put_tuple(out: &mut Vec<u8>, tuple: &Tuple) {
    let values: Vec<Value> = tuple.cells().map(Value::from).collect();
    assert_eq!(values.len(), tuple.len());
    out.put_u16(count(values.len()));
    put_cells(out, &values);
}

fn put_old(out: &mut Vec<u8>, old: &OldRow) {
    out.put_u8(match old {
        OldRow::Key(_) => b'K',
        OldRow::Full(_) => b'O',
    });
    put_tuple(out, old.tuple());
}

fn put_relation(out: &mut Vec<u8>, relation: &Relation) {
    out.put_u32(relation.oid);
    put_schema(out, &relation.schema);
    put_text(out, &relation.name);
    out.put_u8(match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.put_u16(count(relation.columns.len()));
    for column in &relation.columns {
        out.put_u8(u8::from(column.key));
        put_text(out, &column.name);
        out.put_u32(column.type_oid);
        out.put_i32(column.type_modifier);
    }
}

/// As the server does it.
fn encode(message: &ReplicationMessage) -> Bytes {
    let mut out = Vec::new();
    match message {
        ReplicationMessage::Begin {
            final_lsn,
            commit_time_us,
            xid,
        } => {
            out.put_u8(b'B');
            out.put_u64(final_lsn.0);
            put_time(&mut out, *commit_time_us);
            out.put_u32(*xid);
        }
        ReplicationMessage::Commit {
            commit_lsn,
            end_lsn,
            commit_time_us,
        } => {
            out.put_slice(b"C\0");
            out.put_u64(commit_lsn.0);
            out.put_u64(end_lsn.0);
            put_time(&mut out, *commit_time_us);
        }
        ReplicationMessage::Relation(relation) => {
            out.put_u8(b'R');
            put_relation(&mut out, relation);
        }
        ReplicationMessage::Type { oid, schema, name } => {
            out.put_u8(b'Y');
            out.put_u32(*oid);
            put_schema(&mut out, schema);
            put_text(&mut out, name);
        }
        ReplicationMessage::Origin { commit_lsn, name } => {
            out.put_u8(b'O');
            out.put_u64(commit_lsn.0);
            put_text(&mut out, name);
        }
        ReplicationMessage::Message {
            transactional,
            lsn,
            prefix,
            content,
        } => {
            out.put_u8(b'M');
            out.put_u8(u8::from(*transactional));
            out.put_u64(lsn.0);
            put_text(&mut out, prefix);
            out.put_u32(count(content.len()));
            out.put_slice(content);
        }
        ReplicationMessage::Insert { relation, new } => {
            out.put_u8(b'I');
            out.put_u32(*relation);
            out.put_u8(b'N');
            put_tuple(&mut out, new);
        }
        ReplicationMessage::Update { relation, old, new } => {
            out.put_u8(b'U');
            out.put_u32(*relation);
            if let Some(old) = old {
                put_old(&mut out, old);
            }
            out.put_u8(b'N');
            put_tuple(&mut out, new);
        }
        ReplicationMessage::Delete { relation, old } => {
            out.put_u8(b'D');
            out.put_u32(*relation);
            put_old(&mut out, old);
        }
        ReplicationMessage::Truncate {
            relations,
            cascade,
            restart_identity,
        } => {
            out.put_u8(b'T');
            out.put_u32(count(relations.len()));
            out.put_u8(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            relations.iter().for_each(|oid| out.put_u32(*oid));
        }
        ReplicationMessage::Keepalive { .. } => unreachable!("not a message of the plugin"),
    }
    out.into()
}

fn values() -> impl Strategy<Value = Vec<Value>> {
    let value = prop_oneof![
        Just(Value::Null),
        Just(Value::Unchanged),
        vec(any::<u8>(), 0..40).prop_map(Value::Text),
        vec(any::<u8>(), 0..40).prop_map(Value::Binary),
    ];
    vec(value, 0..12)
}

fn tuple() -> impl Strategy<Value = Tuple> {
    values().prop_map(|values| {
        let mut cells = Vec::new();
        put_cells(&mut cells, &values);
        Tuple::walked(
            count(values.len()),
            values.contains(&Value::Unchanged),
            cells.into(),
        )
    })
}

fn old_row() -> impl Strategy<Value = OldRow> {
    prop_oneof![
        tuple().prop_map(OldRow::Key),
        tuple().prop_map(OldRow::Full)
    ]
}

fn name() -> impl Strategy<Value = String> {
    "[^\0]{1,20}"
}

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn time_us() -> impl Strategy<Value = i64> {
    (i64::MIN + POSTGRES_EPOCH_US)..=i64::MAX
}

fn relation() -> impl Strategy<Value = Relation> {
    let column = (name(), any::<u32>(), any::<i32>(), any::<bool>()).prop_map(
        |(name, type_oid, type_modifier, key)| RelationColumn {
            name,
            type_oid,
            type_modifier,
            key,
        },
    );
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ];
    (any::<u32>(), name(), name(), identity, vec(column, 0..8)).prop_map(
        |(oid, schema, name, replica_identity, columns)| Relation {
            oid,
            schema,
            name,
            replica_identity,
            columns,
        },
    )
}

fn message() -> impl Strategy<Value = ReplicationMessage> {
    use ReplicationMessage as M;
    prop_oneof![
        (lsn(), time_us(), any::<u32>()).prop_map(|(final_lsn, commit_time_us, xid)| M::Begin {
            final_lsn,
            commit_time_us,
            xid
        }),
        (lsn(), lsn(), time_us()).prop_map(|(commit_lsn, end_lsn, commit_time_us)| M::Commit {
            commit_lsn,
            end_lsn,
            commit_time_us
        }),
        relation().prop_map(M::Relation),
        (any::<u32>(), name(), name()).prop_map(|(oid, schema, name)| M::Type {
            oid,
            schema,
            name
        }),
        (lsn(), name()).prop_map(|(commit_lsn, name)| M::Origin { commit_lsn, name }),
        (any::<bool>(), lsn(), name(), vec(any::<u8>(), 0..40)).prop_map(
            |(transactional, lsn, prefix, content)| M::Message {
                transactional,
                lsn,
                prefix,
                content: content.into()
            }
        ),
        (any::<u32>(), tuple()).prop_map(|(relation, new)| M::Insert { relation, new }),
        (any::<u32>(), option::of(old_row()), tuple()).prop_map(|(relation, old, new)| M::Update {
            relation,
            old,
            new
        }),
        (any::<u32>(), old_row()).prop_map(|(relation, old)| M::Delete { relation, old }),
        (vec(any::<u32>(), 0..8), any::<bool>(), any::<bool>()).prop_map(
            |(relations, cascade, restart_identity)| M::Truncate {
                relations,
                cascade,
                restart_identity
            }
        ),
    ]
}

proptest! {
    #[test]
    fn what_the_server_encodes_is_decoded_to_the_same(message in message()) {
        prop_assert_eq!(decode(encode(&message)), Ok(message));
    }

    #[test]
    fn cells_come_out_as_they_went_in(values in values()) {
        let mut data = b"I\0\0\0\x07N".to_vec();
        data.put_u16(count(values.len()));
        put_cells(&mut data, &values);
        let Ok(ReplicationMessage::Insert { relation: 7, new }) = decode(data.into()) else {
            return Err(TestCaseError::fail("not the insert"));
        };
        prop_assert_eq!(new.has_unchanged(), values.contains(&Value::Unchanged));
        prop_assert_eq!(new.cell(values.len()), None);
        let read: Vec<Value> = new.cells().map(Value::from).collect();
        prop_assert_eq!(read, values);
    }

    #[test]
    fn any_bytes_are_a_message_or_refused(data in vec(any::<u8>(), 0..200)) {
        let _ = decode(data.into());
    }

    /// Random bytes seldom get past a kind and an oid; bytes that were a message do.
    #[test]
    fn damaged_messages_are_refused_or_another_message(
        message in message(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut data = encode(&message).to_vec();
        for (at, byte) in damage {
            let at = at.index(data.len());
            data[at] = byte;
        }
        if let Ok(other) = decode(data.into()) {
            prop_assert_eq!(decode(encode(&other)), Ok(other));
        }
    }

    #[test]
    fn a_message_cut_short_or_with_more_behind_it_is_refused(
        message in message(),
        cut in any::<prop::sample::Index>(),
    ) {
        let data = encode(&message);
        prop_assert!(decode(data.slice(..cut.index(data.len()))).is_err());
        let mut longer = data.to_vec();
        longer.push(0);
        prop_assert!(decode(longer.into()).is_err());
    }
}

#[test]
fn a_count_that_is_not_there_allocates_nothing() {
    let truncate = decode(Bytes::from_static(b"T\xff\xff\xff\xff\0"));
    assert_eq!(truncate, Err(DecodeError::Short { kind: 'T' }));
    let message = decode(Bytes::from_static(
        b"M\0\0\0\0\0\0\0\0\0p\0\xff\xff\xff\xff",
    ));
    assert_eq!(message, Err(DecodeError::Short { kind: 'M' }));
}

#[test]
fn a_time_that_no_clock_shows_is_refused() {
    let mut data = b"B\0\0\0\0\0\0\0\0".to_vec();
    data.put_i64(i64::MAX);
    data.put_u32(1);
    assert_eq!(decode(data.into()), Err(DecodeError::Time { kind: 'B' }));
}

#[test]
fn messages_of_later_protocol_versions_are_named() {
    let stream_start = decode(Bytes::from_static(b"S\0\0\0\x01\x01"));
    assert_eq!(stream_start, Err(DecodeError::UnknownMessage('S')));
}
