//! The view's schema: versioned, applied by the aggregator itself once it holds the lock.

use tokio_postgres::{Client, Error};

use crate::failure::Failure;

struct Migration {
    version: i32,
    name: &'static str,
    sql: &'static str,
}

/// In order. A migration that was released is never changed: its checksum is compared.
static MIGRATIONS: [Migration; 9] = [
    Migration {
        version: 1,
        name: "view",
        sql: include_str!("../migrations/0001_view.sql"),
    },
    Migration {
        version: 2,
        name: "rebuild",
        sql: include_str!("../migrations/0002_rebuild.sql"),
    },
    Migration {
        version: 3,
        name: "quarantine_lsn",
        sql: include_str!("../migrations/0003_quarantine_lsn.sql"),
    },
    Migration {
        version: 4,
        name: "discrepancies",
        sql: include_str!("../migrations/0004_discrepancies.sql"),
    },
    Migration {
        version: 5,
        name: "definitions",
        sql: include_str!("../migrations/0005_definitions.sql"),
    },
    Migration {
        version: 6,
        name: "daily_sales",
        sql: include_str!("../migrations/0006_daily_sales.sql"),
    },
    Migration {
        version: 7,
        name: "suspended",
        sql: include_str!("../migrations/0007_suspended.sql"),
    },
    Migration {
        version: 8,
        name: "sweep",
        sql: include_str!("../migrations/0008_sweep.sql"),
    },
    Migration {
        version: 9,
        name: "iso_time",
        sql: include_str!("../migrations/0009_iso_time.sql"),
    },
];

/// Where the migrations that ran are noted.
const OWN: &str = "
    CREATE SCHEMA IF NOT EXISTS aggregator;
    CREATE TABLE IF NOT EXISTS aggregator.migrations (
        version integer PRIMARY KEY,
        name text NOT NULL,
        checksum text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )";

/// Applies what is missing, each in a transaction of its own, and lets the roles read.
/// Fails where a role is missing, the schema is another version's, or the database refuses.
pub(crate) async fn migrate(
    client: &Client,
    readers: &[String],
    replicators: &[String],
) -> Result<(), Failure> {
    let doing = "migrate the view database";
    let exists = "SELECT to_regclass('aggregator.migrations') IS NOT NULL";
    let exists = client.query_one(exists, &[]).await;
    let exists: bool = exists
        .and_then(|row| row.try_get(0))
        .map_err(Failure::database(doing))?;
    if !exists {
        client
            .batch_execute(OWN)
            .await
            .map_err(Failure::database(doing))?;
    }
    let applied = applied(client).await.map_err(Failure::database(doing))?;
    check(client, &applied).await?;
    for migration in &MIGRATIONS {
        if !applied
            .iter()
            .any(|(version, _)| *version == migration.version)
        {
            let (version, name) = (migration.version, migration.name);
            apply(client, migration)
                .await
                .map_err(Failure::database(doing))?;
            tracing::info!(
                version,
                name,
                "migrated the view database to version {version}"
            );
        }
    }
    for role in readers.iter().chain(replicators) {
        grant(client, role).await?;
    }
    Ok(())
}

async fn applied(client: &Client) -> Result<Vec<(i32, String)>, Error> {
    let sql = "SELECT version, checksum FROM aggregator.migrations ORDER BY version";
    let rows = client.query(sql, &[]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}

/// The server computes it, so that the same one compares.
const CHECKSUM: &str = "encode(sha256(convert_to($1, 'UTF8')), 'hex')";

async fn check(client: &Client, applied: &[(i32, String)]) -> Result<(), Failure> {
    for (version, checksum) in applied {
        let known = MIGRATIONS.iter().find(|known| known.version == *version);
        let Some(known) = known else {
            return Err(Failure::Prerequisite(format!(
                "the view database was migrated to version {version} by a newer aggregator; \
                run that one, or point view.url to another database"
            )));
        };
        let own: String = client
            .query_one(&format!("SELECT {CHECKSUM}"), &[&known.sql])
            .await
            .and_then(|row| row.try_get(0))
            .map_err(Failure::database("compare migrations"))?;
        if own != *checksum {
            return Err(Failure::Prerequisite(format!(
                "migration {version} of the view database is not this aggregator's; \
                run the one that made it, or point view.url to another database"
            )));
        }
    }
    Ok(())
}

async fn apply(client: &Client, migration: &Migration) -> Result<(), Error> {
    client.batch_execute("BEGIN").await?;
    client.batch_execute(migration.sql).await?;
    client
        .execute(
            &format!(
                "INSERT INTO aggregator.migrations (checksum, version, name)
                VALUES ({CHECKSUM}, $2, $3)"
            ),
            &[&migration.sql, &migration.version, &migration.name],
        )
        .await?;
    client.batch_execute("COMMIT").await
}

/// Lets a role read the unified tables, and nothing else. Nothing is written where it may.
async fn grant(client: &Client, role: &str) -> Result<(), Failure> {
    let doing = "let a role read the unified tables";
    let exists = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)";
    let exists: bool = client
        .query_one(exists, &[&role])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(Failure::database(doing))?;
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    if !exists {
        return Err(Failure::Prerequisite(format!(
            "the role {role} that may read the view does not exist; \
            make it, as a superuser: CREATE ROLE {quoted} LOGIN PASSWORD '…';"
        )));
    }
    let may = "SELECT has_schema_privilege($1, 'public', 'USAGE') AND coalesce(bool_and(
            has_table_privilege($1, c.oid, 'SELECT')), true)
        FROM pg_class AS c WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    let may: bool = client
        .query_one(may, &[&role])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(Failure::database(doing))?;
    if !may {
        client
            .batch_execute(&format!(
                "GRANT USAGE ON SCHEMA public TO {quoted};
                GRANT SELECT ON ALL TABLES IN SCHEMA public TO {quoted}"
            ))
            .await
            .map_err(Failure::database(doing))?;
    }
    Ok(())
}
