# One image with the three binaries; the command chooses: connector, aggregator or api.
FROM rust:1.95-bookworm AS build
# What TLS is linked with.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libssl-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin connector --bin aggregator --bin api \
    && mkdir /out \
    && cp target/release/connector target/release/aggregator target/release/api /out/

# The shop that plays the legacy applications; not part of the shipped image.
FROM build AS build-shop
RUN cargo build --release --locked -p fixtures --bin shop

FROM debian:bookworm-slim AS shop
COPY --from=build-shop /src/target/release/shop /usr/local/bin/shop
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/shop"]

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="tributary" \
      org.opencontainers.image.licenses="Apache-2.0"
# TLS, and the authorities that are trusted where a configuration names none.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libssl3 ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /usr/local/bin/
COPY connectors/warehouse.toml connectors/accounting.toml connectors/sales.toml connectors/unified.toml \
     /etc/tributary/connectors/
COPY aggregator/aggregator.toml api/api.toml /etc/tributary/
USER 65532:65532
CMD ["api", "--config", "/etc/tributary/api.toml"]
