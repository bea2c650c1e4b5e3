//! Who we are, said in the way that the server asks for.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use links::postgres::Binding;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;

use super::error::{CommandError, ReplicationError};

/// One authentication, fed with the server's requests.
pub(super) struct Authentication<'a> {
    user: &'a str,
    password: Option<&'a [u8]>,
    address: String,
    binding: Binding,
    scram: Scram,
}

enum Scram {
    NotBegun,
    Begun(Box<ScramSha256>),
    /// The server has proven that it knows the password, too.
    Proven,
}

impl fmt::Debug for Authentication<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authentication")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl<'a> Authentication<'a> {
    pub(super) fn new(
        config: &'a tokio_postgres::Config,
        binding: Binding,
        address: String,
    ) -> Self {
        Self {
            user: config.get_user().unwrap_or_default(),
            password: config.get_password(),
            address,
            binding,
            scram: Scram::NotBegun,
        }
    }

    /// Puts the answer to the body of a request into `output`. True: we are let in.
    pub(super) fn answer(
        &mut self,
        mut request: Bytes,
        output: &mut BytesMut,
    ) -> Result<bool, ReplicationError> {
        let method = request
            .try_get_u32()
            .map_err(|_| self.protocol("an authentication request is cut short"))?;
        let written = match method {
            // A server that began SCRAM owes us its proof, else it may be anybody.
            0 => match self.scram {
                Scram::NotBegun | Scram::Proven => return Ok(true),
                Scram::Begun(_) => {
                    return Err(self.protocol("the server ended SCRAM before its proof"));
                }
            },
            3 => frontend::password_message(self.password()?, output),
            5 => {
                let salt = request
                    .first_chunk::<4>()
                    .ok_or_else(|| self.protocol("a salt is cut short"))?;
                let hash = md5_hash(self.user.as_bytes(), self.password()?, *salt);
                frontend::password_message(hash.as_bytes(), output)
            }
            10 => return self.begin_scram(&request, output).map(|()| false),
            11 => return self.continue_scram(&request, output).map(|()| false),
            12 => return self.finish_scram(&request).map(|()| false),
            2 => return Err(unsupported("Kerberos V5")),
            7 | 8 => return Err(unsupported("GSSAPI")),
            9 => return Err(unsupported("SSPI")),
            _ => return Err(unsupported("an unknown kind of")),
        };
        self.written(written).map(|()| false)
    }

    fn begin_scram(
        &mut self,
        mechanisms: &[u8],
        output: &mut BytesMut,
    ) -> Result<(), ReplicationError> {
        let offered = |wanted: &str| {
            let mut names = mechanisms.split(|&byte| byte == 0);
            names.any(|name| name == wanted.as_bytes())
        };
        let (mechanism, binding) = match &self.binding {
            // Bound to the certificate, so that nobody passes our proof on.
            Binding::EndPoint(hash) if offered(SCRAM_SHA_256_PLUS) => (
                SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(hash.clone()),
            ),
            // Said, so that a server finds out who took its offer away.
            Binding::EndPoint(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            Binding::Plain | Binding::Unknown => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !offered(mechanism) {
            return Err(unsupported("another kind of SASL"));
        }
        if !matches!(self.scram, Scram::NotBegun) {
            return Err(self.protocol("SCRAM begins twice"));
        }
        let scram = ScramSha256::new(self.password()?, binding);
        let written = frontend::sasl_initial_response(mechanism, scram.message(), output);
        self.scram = Scram::Begun(Box::new(scram));
        self.written(written)
    }

    fn continue_scram(
        &mut self,
        challenge: &[u8],
        output: &mut BytesMut,
    ) -> Result<(), ReplicationError> {
        let Scram::Begun(scram) = &mut self.scram else {
            return Err(self.protocol("SCRAM goes on, but it does not run"));
        };
        scram.update(challenge).map_err(ReplicationError::Scram)?;
        let written = frontend::sasl_response(scram.message(), output);
        self.written(written)
    }

    fn finish_scram(&mut self, proof: &[u8]) -> Result<(), ReplicationError> {
        let Scram::Begun(scram) = &mut self.scram else {
            return Err(self.protocol("SCRAM ends, but it does not run"));
        };
        scram.finish(proof).map_err(ReplicationError::Scram)?;
        self.scram = Scram::Proven;
        Ok(())
    }

    fn password(&self) -> Result<&'a [u8], ReplicationError> {
        self.password
            .ok_or_else(|| ReplicationError::PasswordMissing {
                user: self.user.to_owned(),
            })
    }

    fn written(&self, written: std::io::Result<()>) -> Result<(), ReplicationError> {
        written.map_err(|error| self.failed(CommandError::Io(error)))
    }

    fn protocol(&self, what: &str) -> ReplicationError {
        self.failed(CommandError::Protocol(what.to_owned()))
    }

    fn failed(&self, source: CommandError) -> ReplicationError {
        ReplicationError::Startup {
            address: self.address.clone(),
            source,
        }
    }
}

fn unsupported(method: &'static str) -> ReplicationError {
    ReplicationError::AuthenticationMethod { method }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: u32, body: &[u8]) -> Bytes {
        [&method.to_be_bytes(), body].concat().into()
    }

    fn answers(url: &str, requests: &[Bytes]) -> Result<bool, ReplicationError> {
        let config = url.parse().unwrap();
        let mut authentication = Authentication::new(&config, Binding::Plain, "h:1".to_owned());
        let mut let_in = Ok(false);
        for request in requests {
            let_in = authentication.answer(request.clone(), &mut BytesMut::new());
        }
        let_in
    }

    /// Whoever cannot prove that it knows the password may be anybody on our way.
    #[test]
    fn a_server_that_skips_its_proof_is_not_believed() {
        let begin = request(10, b"SCRAM-SHA-256\0\0");
        for requests in [
            &[begin.clone(), request(0, b"")][..],
            &[begin.clone(), request(12, b"v=AAAA")],
            &[begin.clone(), begin.clone()],
            &[begin, request(11, b"r=another,s=AAAA,i=4096")],
            &[request(12, b"v=AAAA")],
            &[request(11, b"")],
        ] {
            answers("postgres://u:p@h/d", requests).unwrap_err();
        }
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        for method in [2, 7, 8, 9, 99] {
            let error = answers("postgres://u:p@h/d", &[request(method, b"")]).unwrap_err();
            assert!(matches!(
                error,
                ReplicationError::AuthenticationMethod { .. }
            ));
        }
        let plus_only = request(10, b"SCRAM-SHA-256-PLUS\0\0");
        assert!(answers("postgres://u:p@h/d", &[plus_only]).is_err());
        for method in [3, 5, 10] {
            let body = b"SCRAM-SHA-256\0\0";
            let error = answers("postgres://u@h/d", &[request(method, body)]).unwrap_err();
            assert!(matches!(error, ReplicationError::PasswordMissing { .. }));
        }
        assert!(answers("postgres://u:p@h/d", &[Bytes::from_static(b"\0")]).is_err());
        assert!(answers("postgres://u:p@h/d", &[request(5, b"123")]).is_err());
    }

    #[test]
    fn trust_needs_no_password() {
        assert!(answers("postgres://u@h/d", &[request(0, b"")]).unwrap());
    }
}
