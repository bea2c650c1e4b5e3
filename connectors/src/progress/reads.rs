//! What is to be read next, and how far reads are.

use std::collections::{BTreeMap, BTreeSet};

use kafka::TableState;
use kafka::checkpoint::{KeyRange, Read, ReadRequest, Reconcile, RunningRead};

use super::Progress;

/// Requests that wait or run, of one source at most.
const REQUESTS_MAX: usize = 100;

/// A part of a table that one chunk begins to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    pub table: String,
    /// The request that it is of; none: the table's own read.
    pub request: Option<u64>,
    pub range: KeyRange,
}

/// How a chunk ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChunkEnd {
    /// The last key that was passed; none: the whole slice.
    pub after: Option<Vec<String>>,
    pub rows: u64,
    pub bytes: u64,
}

/// What is to be read next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextRead {
    /// Chunks of these, at once.
    Slices(Vec<Slice>),
    /// The next keys of a partition are to be compared with the source.
    Reconcile {
        table: String,
        request: Option<u64>,
        partition: i32,
        stale: Reconcile,
    },
}

/// Why a read cannot be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("{0} is none of the tables that this connector captures")]
    UnknownTable(String),
    #[error("{REQUESTS_MAX} reads are waiting already; ask again when some are complete")]
    TooMany,
}

impl Progress {
    /// What is to be read next, `workers` slices of it at most, and nothing of the tables in
    /// `without`. Tables come before what is to be compared, and both before what somebody asked
    /// for, one request after the other.
    #[must_use]
    pub fn next_read(&self, workers: usize, without: &BTreeSet<String>) -> Option<NextRead> {
        let tables = || self.ready().filter(|(table, _)| !without.contains(*table));
        let slices: Vec<_> = tables()
            .flat_map(|(table, state)| slices_of(table, None, &state.read))
            .take(workers)
            .collect();
        if !slices.is_empty() {
            return Some(NextRead::Slices(slices));
        }
        let stale = tables().find_map(|(table, state)| reconcile(table, None, &state.reconcile));
        stale.or_else(|| {
            let (table, request) = oldest_request(tables())?;
            let slices: Vec<_> = slices_of(table, Some(request.id), &request.read)
                .take(workers)
                .collect();
            if slices.is_empty() {
                reconcile(table, Some(request.id), &request.reconcile)
            } else {
                Some(NextRead::Slices(slices))
            }
        })
    }

    /// The tables that are not among `some`.
    pub fn tables_without<T>(&self, some: &BTreeMap<String, T>) -> impl Iterator<Item = String> {
        let others = self
            .tables
            .keys()
            .filter(|table| !some.contains_key(*table));
        others.cloned()
    }

    /// Is there anything to read?
    #[must_use]
    pub fn is_reading(&self) -> bool {
        self.ready().any(|(_, state)| is_unread(state))
    }

    /// Is there anything of this table to read?
    #[must_use]
    pub fn is_to_read(&self, table: &str) -> bool {
        self.tables.get(table).is_some_and(is_unread)
    }

    /// How far the read is that a slice is of.
    #[must_use]
    pub fn read_of(&self, slice: &Slice) -> Option<&Read> {
        let state = self.tables.get(&slice.table)?;
        match slice.request {
            None => Some(&state.read),
            Some(id) => request(state, id).map(|request| &request.read),
        }
    }

    /// Reads under way: of a table, or for a request.
    pub fn running_reads(&self) -> impl Iterator<Item = (&str, Option<u64>, &RunningRead)> {
        self.tables.iter().flat_map(|(table, state)| {
            let requests = state.requests.iter();
            let requests = requests.map(|request| (Some(request.id), &request.read));
            let reads = std::iter::once((None, &state.read)).chain(requests);
            reads.filter_map(move |(request, read)| match read {
                Read::Running(running) => Some((table.as_str(), request, running)),
                Read::First | Read::After(_) | Read::Done => None,
            })
        })
    }

    /// The request with this id.
    #[must_use]
    pub fn request(&self, table: &str, id: u64) -> Option<&ReadRequest> {
        request(self.tables.get(table)?, id)
    }

    /// A read begins, cut at `keys`, of about so many rows.
    pub fn read_begins(
        &mut self,
        slice: &Slice,
        keys: Vec<Vec<String>>,
        rows_estimate: u64,
        now_us: i64,
    ) {
        if let Some(read @ Read::First) = self.read_mut(slice) {
            let running = read.running();
            running.ranges = KeyRange::between(keys);
            running.rows_estimate = rows_estimate;
            running.begun_at_us = now_us;
        }
    }

    /// A chunk of a slice has been sent.
    pub fn chunk_sent(&mut self, slice: &Slice, end: ChunkEnd) {
        if let Some(read) = self.read_mut(slice) {
            read.advance(&slice.range, end.after, end.rows, end.bytes);
        }
        self.uncovered = true;
        self.forget_complete_requests(&slice.table);
    }

    /// A batch of a reconciliation has been sent; the next one goes on at `next`.
    pub fn reconciled(&mut self, table: &str, request: Option<u64>, partition: i32, next: i64) {
        if let Some(state) = self.tables.get_mut(table) {
            let stale = match request {
                None => Some(&mut state.reconcile),
                Some(id) => request_mut(state, id).map(|request| &mut request.reconcile),
            };
            if let Some(partitions) = stale
                && let Some(stale) = partitions.get_mut(&partition)
            {
                stale.next = next;
                if stale.next >= stale.end {
                    partitions.remove(&partition);
                }
            }
        }
        self.uncovered = true;
        self.forget_complete_requests(table);
    }

    // -- requests ------------------------------------------------------------------------

    /// Somebody asks for a read. It is asked for once a record says so.
    ///
    /// # Errors
    /// Where the table is not captured, or too many requests wait.
    pub fn ask(&mut self, table: &str, request: ReadRequest) -> Result<(), RequestError> {
        let waiting: usize = self.tables.values().map(|state| state.requests.len()).sum();
        if waiting >= REQUESTS_MAX {
            return Err(RequestError::TooMany);
        }
        let state = self
            .tables
            .get_mut(table)
            .ok_or_else(|| RequestError::UnknownTable(table.to_owned()))?;
        state.requests.push(request);
        Ok(())
    }

    /// A request that cannot be fulfilled is given up; true if it was there.
    pub fn give_up(&mut self, table: &str, id: u64) -> bool {
        let Some(state) = self.tables.get_mut(table) else {
            return false;
        };
        let before = state.requests.len();
        state.requests.retain(|request| request.id != id);
        before != state.requests.len()
    }

    /// The greatest id of a request that is not complete.
    #[must_use]
    pub fn last_request(&self) -> u64 {
        let ids = self.tables.values().flat_map(|state| &state.requests);
        ids.map(|request| request.id).max().unwrap_or_default()
    }

    /// Tables of which the stream has passed what it must before they are read.
    fn ready(&self) -> impl Iterator<Item = (&String, &TableState)> {
        let tables = self.tables.iter();
        tables.filter(|(_, state)| !self.is_held(state))
    }

    fn read_mut(&mut self, slice: &Slice) -> Option<&mut Read> {
        let state = self.tables.get_mut(&slice.table)?;
        match slice.request {
            None => Some(&mut state.read),
            Some(id) => request_mut(state, id).map(|request| &mut request.read),
        }
    }

    fn forget_complete_requests(&mut self, table: &str) {
        if let Some(state) = self.tables.get_mut(table) {
            let complete =
                |request: &ReadRequest| request.read.is_done() && request.reconcile.is_empty();
            state.requests.retain(|request| !complete(request));
        }
    }
}

fn is_unread(state: &TableState) -> bool {
    !state.read.is_done() || !state.reconcile.is_empty() || !state.requests.is_empty()
}

fn oldest_request<'a>(
    tables: impl Iterator<Item = (&'a String, &'a TableState)>,
) -> Option<(&'a str, &'a ReadRequest)> {
    let all = tables.flat_map(|(table, state)| {
        let requests = state.requests.iter();
        requests.map(move |request| (table.as_str(), request))
    });
    all.min_by_key(|(_, request)| request.id)
}

fn slices_of<'a>(
    table: &'a str,
    request: Option<u64>,
    read: &Read,
) -> impl Iterator<Item = Slice> + use<'a> {
    read.ranges().into_iter().map(move |range| Slice {
        table: table.to_owned(),
        request,
        range,
    })
}

fn reconcile(
    table: &str,
    request: Option<u64>,
    stale: &BTreeMap<i32, Reconcile>,
) -> Option<NextRead> {
    let (partition, stale) = stale.first_key_value()?;
    Some(NextRead::Reconcile {
        table: table.to_owned(),
        request,
        partition: *partition,
        stale: *stale,
    })
}

fn request(state: &TableState, id: u64) -> Option<&ReadRequest> {
    state.requests.iter().find(|request| request.id == id)
}

fn request_mut(state: &mut TableState, id: u64) -> Option<&mut ReadRequest> {
    state.requests.iter_mut().find(|request| request.id == id)
}
