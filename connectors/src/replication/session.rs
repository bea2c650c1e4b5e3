//! A connection in replication mode: startup, authentication, simple queries.

use std::fmt;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use links::Endpoint;
use links::postgres::Binding;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::authentication::Authentication;
use super::config::{ReplicationConfig, SESSION_SETTINGS};
use super::error::{CommandError, ReplicationError, ServerError};
use super::frame::{self, Frame, tag};
use super::transport::{Address, Opened, Transport};

/// Read at once while commands are answered.
const READ_BYTES: usize = 8 << 10;

/// For the server to take a cancel request.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// A row of a simple query's answer; a null is none.
pub(super) type Row = Vec<Option<Bytes>>;

/// An authenticated connection.
pub(super) struct Session {
    pub(super) transport: Box<dyn Transport>,
    /// Received and not looked at yet.
    pub(super) input: BytesMut,
    output: BytesMut,
    address: Address,
    /// For a connection beside this one, to cancel.
    endpoint: Endpoint,
    message_bytes_max: usize,
    /// A command was given up before its answer was complete, so the next answer would be
    /// another command's.
    out_of_step: bool,
    pub(super) server_version: String,
    pub(super) backend_pid: i32,
    cancel_key: i32,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("address", &self.address)
            .field("server_version", &self.server_version)
            .field("backend_pid", &self.backend_pid)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// The first host that takes us; one that refuses us for good ends the search.
    pub(super) async fn connect(config: &ReplicationConfig) -> Result<Self, ReplicationError> {
        let mut refusal = ReplicationError::UrlIncomplete("a host");
        for address in Address::all(&config.postgres) {
            let attempt = Self::establish(config, &address);
            refusal = match timeout(config.connect_timeout, attempt).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => error,
                Err(_) => ReplicationError::Startup {
                    address: address.to_string(),
                    source: CommandError::Timeout(config.connect_timeout),
                },
            };
            if !refusal.is_retriable() {
                break;
            }
        }
        Err(refusal)
    }

    async fn establish(
        config: &ReplicationConfig,
        address: &Address,
    ) -> Result<Self, ReplicationError> {
        let Opened { transport, binding } =
            address
                .open(&config.postgres)
                .await
                .map_err(|source| ReplicationError::Connect {
                    address: address.to_string(),
                    source,
                })?;
        let mut session = Self {
            transport,
            input: BytesMut::with_capacity(READ_BYTES),
            output: BytesMut::new(),
            address: address.clone(),
            endpoint: config.postgres.clone(),
            message_bytes_max: config.message_bytes_max,
            out_of_step: false,
            server_version: String::new(),
            backend_pid: 0,
            cancel_key: 0,
        };
        let failed = |source| ReplicationError::Startup {
            address: address.to_string(),
            source,
        };
        session.send_startup(config).await.map_err(failed)?;
        session.authenticate(config, binding).await?;
        session.await_ready().await.map_err(failed)?;
        Ok(session)
    }

    /// 18 of `18.1 (Debian …)`; 0 where the server did not say.
    pub(super) fn major_version(&self) -> u32 {
        let digits = self.server_version.split(|c: char| !c.is_ascii_digit());
        digits
            .map(str::parse)
            .find_map(Result::ok)
            .unwrap_or_default()
    }

    async fn send_startup(&mut self, config: &ReplicationConfig) -> Result<(), CommandError> {
        let postgres = &config.postgres;
        let user = postgres.get_user().unwrap_or_default();
        // Ours come last, so that they win over what the URL says.
        let options = format!(
            "{} -c wal_sender_timeout={}ms",
            postgres.get_options().unwrap_or_default(),
            config.wal_sender_timeout.as_millis()
        );
        let parameters = [
            ("user", user),
            ("database", postgres.get_dbname().unwrap_or(user)),
            ("replication", "database"),
            ("application_name", config.application_name.as_str()),
            ("options", options.trim_start()),
        ];
        frontend::startup_message(
            parameters.into_iter().chain(SESSION_SETTINGS),
            &mut self.output,
        )
        .map_err(CommandError::Io)?;
        self.flush().await
    }

    async fn authenticate(
        &mut self,
        config: &ReplicationConfig,
        binding: Binding,
    ) -> Result<(), ReplicationError> {
        let address = self.address.to_string();
        let mut authentication = Authentication::new(&config.postgres, binding, address.clone());
        let failed = |source| ReplicationError::Startup {
            address: address.clone(),
            source,
        };
        loop {
            let request = self.expect(tag::AUTHENTICATION).await.map_err(failed)?;
            if authentication.answer(request, &mut self.output)? {
                return Ok(());
            }
            self.flush().await.map_err(failed)?;
        }
    }

    /// After authentication: the server's parameters, until it is ready.
    async fn await_ready(&mut self) -> Result<(), CommandError> {
        loop {
            let Frame { tag, mut body } = self.receive().await?;
            match tag {
                tag::READY_FOR_QUERY => return Ok(()),
                tag::ERROR_RESPONSE => return Err(server_error(&body)),
                tag::BACKEND_KEY_DATA if body.len() >= 8 => {
                    self.backend_pid = body.get_i32();
                    self.cancel_key = body.get_i32();
                }
                other => return Err(unexpected(other, "startup")),
            }
        }
    }

    /// Runs one command and collects its rows.
    pub(super) async fn query(
        &mut self,
        command: &str,
        limit: Duration,
    ) -> Result<Vec<Row>, CommandError> {
        timeout(limit, async {
            self.send_query(command).await?;
            self.rows().await
        })
        .await
        .unwrap_or(Err(CommandError::Timeout(limit)))
    }

    /// As [`Session::query`]; once the limit is over, asks the server to give up, too. What the
    /// server had done by then counts.
    pub(super) async fn query_or_cancel(
        &mut self,
        command: &str,
        limit: Duration,
    ) -> Result<Vec<Row>, CommandError> {
        let answer = self.query(command, limit).await;
        if !matches!(answer, Err(CommandError::Timeout(_))) {
            return answer;
        }
        let given_up = timeout(CANCEL_TIMEOUT, async {
            self.cancel().await?;
            self.rows().await
        })
        .await;
        match given_up {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(_)) | Err(_) => answer,
        }
    }

    /// Sends the command that turns the session into a stream, and waits until it is one.
    pub(super) async fn start_copy(
        &mut self,
        command: &str,
        limit: Duration,
    ) -> Result<(), CommandError> {
        timeout(limit, async {
            self.send_query(command).await?;
            self.expect(tag::COPY_BOTH_RESPONSE).await
        })
        .await
        .unwrap_or(Err(CommandError::Timeout(limit)))
        .map(|_| ())
    }

    async fn send_query(&mut self, command: &str) -> Result<(), CommandError> {
        if std::mem::replace(&mut self.out_of_step, true) {
            return Err(CommandError::Protocol(
                "an earlier command of this session was given up".to_owned(),
            ));
        }
        frontend::query(command, &mut self.output).map_err(CommandError::Io)?;
        self.flush().await
    }

    async fn rows(&mut self) -> Result<Vec<Row>, CommandError> {
        let (mut rows, mut refusal) = (Vec::new(), None);
        loop {
            let Frame { tag, body } = self.receive().await?;
            match tag {
                tag::DATA_ROW => rows.push(frame::data_row(body)?),
                tag::ERROR_RESPONSE => refusal = Some(server_error(&body)),
                tag::ROW_DESCRIPTION | tag::COMMAND_COMPLETE => {}
                tag::READY_FOR_QUERY => break,
                other => return Err(unexpected(other, "a command's answer")),
            }
        }
        self.out_of_step = false;
        refusal.map_or(Ok(rows), Err)
    }

    /// Asks the server, on a connection of its own, to give up what this session does.
    async fn cancel(&mut self) -> Result<(), CommandError> {
        let opened = self.address.open(&self.endpoint).await;
        let mut transport = opened.map_err(CommandError::Io)?.transport;
        let mut request = BytesMut::new();
        frontend::cancel_request(self.backend_pid, self.cancel_key, &mut request);
        transport
            .write_all(&request)
            .await
            .map_err(CommandError::Io)?;
        // The server closes it once the request is passed on.
        let mut nothing = [0; 1];
        transport
            .read(&mut nothing)
            .await
            .map_err(CommandError::Io)?;
        Ok(())
    }

    /// The body of the next message, which must be of this kind.
    async fn expect(&mut self, wanted: u8) -> Result<Bytes, CommandError> {
        let Frame { tag, body } = self.receive().await?;
        match tag {
            _ if tag == wanted => Ok(body),
            tag::ERROR_RESPONSE => Err(server_error(&body)),
            other => Err(unexpected(other, "a certain message")),
        }
    }

    /// The next message that is not merely news of the server.
    async fn receive(&mut self) -> Result<Frame, CommandError> {
        loop {
            while let Some(Frame { tag, body }) =
                frame::split(&mut self.input, self.message_bytes_max)?
            {
                match tag {
                    tag::PARAMETER_STATUS => self.note_parameter(&body),
                    tag::NOTICE_RESPONSE => log_notice(&body),
                    tag::NOTIFICATION_RESPONSE => {}
                    _ => return Ok(Frame { tag, body }),
                }
            }
            self.input.reserve(READ_BYTES);
            let read = self.transport.read_buf(&mut self.input).await;
            if read.map_err(CommandError::Io)? == 0 {
                return Err(CommandError::Closed);
            }
        }
    }

    fn note_parameter(&mut self, body: &[u8]) {
        let mut texts = body.split(|&byte| byte == 0);
        if texts.next() == Some(b"server_version") {
            let version = texts.next().unwrap_or_default();
            self.server_version = String::from_utf8_lossy(version).into_owned();
        }
    }

    async fn flush(&mut self) -> Result<(), CommandError> {
        self.transport
            .write_all_buf(&mut self.output)
            .await
            .map_err(CommandError::Io)
    }
}

/// The server's words of an ErrorResponse.
pub(super) fn server_error(body: &[u8]) -> CommandError {
    CommandError::Server(Box::new(ServerError::read(body)))
}

/// The server's warnings belong to whoever runs us.
pub(super) fn log_notice(body: &[u8]) {
    let notice = ServerError::read(body);
    tracing::info!(%notice, "the source says: {notice}");
}

fn unexpected(tag: u8, during: &str) -> CommandError {
    CommandError::Protocol(format!("message {:?} instead of {during}", char::from(tag)))
}
