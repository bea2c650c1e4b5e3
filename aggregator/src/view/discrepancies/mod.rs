//! `public.discrepancies`: what does not fit between the systems. Open ones only.
//!
//! A view transaction judges what it touched once, when it commits: what breaks a rule between two
//! of its steps was never there. It is judged by the unified rows and the positions as the view
//! transaction leaves them; so a discrepancy is a function of mirrors and positions, but for
//! `since`, which says at which position it was there first (a rule of time: when it was due).

mod catalogue;
pub(super) mod judge;
pub(crate) mod part_paid;

use std::fmt::Write;
use std::sync::LazyLock;

use service::fault;

use catalogue::{JUDGED, LOOKED_FOR};
pub use catalogue::{RULES, Rule};
use part_paid::PART_PAID;

use super::resource::{Column, Kept, Known, Resource, Rows, join};

/// The discrepancies' own arithmetic: `id = key * 100 + number`. A row with a key beyond this is not
/// judged, rather than that an id overflows.
const KEY_MAX: i64 = 90_000_000_000_000_000;

static COLUMNS: [Column; 6] = [
    Column::new("rule", "text", None),
    Column::new("systems", "text[]", None),
    Column::new("resource", "text", None),
    Column::new("key", "bigint", None),
    Column::new("since", "timestamptz", None),
    Column::new("detail", "jsonb", None),
];

pub(crate) static DISCREPANCIES: LazyLock<Resource> = LazyLock::new(|| Resource {
    table: "public.discrepancies",
    key: &[("id", "bigint")],
    columns: &COLUMNS,
    kept: Kept::Rows(Rows {
        named_by: &[],
        through: &[],
        touched: touched().leak(),
        all: all().leak(),
        computed: computed().leak(),
    }),
});

/// Whether every system of the rule is known, as a condition.
fn is_known(rule: &Rule) -> String {
    if !fault::in_force("claims_of_known_sources") {
        return "true".to_owned();
    }
    let systems = rule.systems.iter().map(|system| format!("{{{system}}}"));
    systems.collect::<Vec<_>>().join(" AND ")
}

fn broken(rule: &Rule) -> String {
    rule.broken
        .replace("{payments_known_until}", part_paid::KNOWN_UNTIL)
}

/// The row of each id, by the rule that the id names. `OFFSET 0` keeps the planner from joining what
/// is to be looked up by key.
fn computed() -> String {
    let rules = RULES.iter().map(|rule| {
        let systems = rule.systems.iter().map(|system| format!("'{system}'"));
        format!(
            "SELECT t.id, b.key IS NOT NULL AS present, '{name}' AS rule,
                ARRAY[{systems}] AS systems, '{resource}' AS resource, t.key,
                CASE WHEN b.key IS NOT NULL THEN coalesce(b.due, (
                    SELECT d.since FROM public.discrepancies AS d WHERE d.id = t.id
                ), (
                    SELECT max(coalesce(p.committed_at, p.current_at, p.applied_at))
                    FROM public.positions AS p
                    WHERE p.source = ANY(ARRAY[{systems}]) AND p.epoch IS NOT NULL
                )) END AS since,
                b.detail, false AS degraded
            FROM (
                SELECT id, (id - {number}) / 100 AS key FROM touched
                WHERE (id - {number}) % 100 = 0
            ) AS t
            LEFT JOIN LATERAL (
                SELECT * FROM ({broken}) AS b WHERE b.key = t.key AND {is_known} OFFSET 0
            ) AS b ON true",
            name = rule.name,
            systems = systems.collect::<Vec<_>>().join(", "),
            resource = rule.resource,
            number = rule.number,
            broken = broken(rule),
            is_known = is_known(rule),
        )
    });
    rules.collect::<Vec<_>>().join("\nUNION ALL\n")
}

/// Every id that has a row or should have one.
fn all() -> String {
    let mut all = "SELECT id FROM public.discrepancies".to_owned();
    for rule in &RULES {
        let _ = write!(
            all,
            "\nUNION SELECT b.key * 100 + {} FROM ({}) AS b WHERE b.key BETWEEN
                greatest(-{KEY_MAX}, {{after}} / 100 - 1) AND least({KEY_MAX}, {{end}} / 100 + 1)",
            rule.number,
            broken(rule),
        );
    }
    all
}

/// The orders that a view transaction touched: those of one parameter, those of the transactions
/// of the other, and what was put aside. That `revision` is looked at keeps the planner from reading
/// an index from end to end.
fn orders_touched(orders: &str, transactions: &str) -> String {
    format!(
        "SELECT unnest({orders}::bigint[]) AS id
        UNION SELECT id FROM aggregator.judged_later WHERE resource = 'orders'
        UNION SELECT x.order_id FROM (
            SELECT unnest({transactions}::bigint[]) AS id
            UNION SELECT id FROM aggregator.judged_later WHERE resource = 'transactions'
        ) AS t CROSS JOIN LATERAL (
            SELECT x.order_id FROM public.transactions AS x
            WHERE x.id = t.id AND x.revision IS NOT NULL OFFSET 0
        ) AS x WHERE x.order_id IS NOT NULL"
    )
}

/// Does a rule ask whether its rows are there?
pub(super) fn is_looked_for(resource: &Resource) -> bool {
    LOOKED_FOR.contains(&resource.name())
}

/// The `resource` by which rows stand in `aggregator.judged_later` that came or went.
fn turned(name: &str) -> String {
    format!("turned {name}")
}

/// The rows of a judged table that may break a rule now and did not, or did and may not any more: those
/// touched, and those that name one that a rule looks for and that came or went. A row that only looks
/// for one that was touched, but neither came nor went, is as it was: so a payment for an order that is
/// not there costs the same whatever is paid for it already.
fn touched_of(name: &str) -> String {
    let parameter = |name: &str| {
        let place = JUDGED.iter().position(|judged| *judged == name);
        format!("${}", 2 + place.unwrap_or_default())
    };
    let mut touched = match name {
        "orders" => orders_touched(&parameter("orders"), &parameter("transactions")),
        _ => put_aside(&parameter(name), name),
    };
    for rule in RULES.iter().filter(|rule| rule.resource == name) {
        // Not the design: as if an order were no concern of its payments.
        if let Some((other, column)) = rule.looks_for
            && fault::in_force("payments_of_touched_orders")
        {
            let _ = write!(
                touched,
                "\nUNION SELECT x.id FROM turned_{other} AS o CROSS JOIN LATERAL (
                    SELECT x.id FROM public.{name} AS x WHERE x.{column} = o.id OFFSET 0
                ) AS x",
            );
        }
    }
    format!("SELECT id FROM ({touched}) AS t WHERE id BETWEEN -{KEY_MAX} AND {KEY_MAX}")
}

/// Ids of a parameter and those that were put aside.
fn put_aside(parameter: &str, resource: &str) -> String {
    format!(
        "SELECT unnest({parameter}::bigint[]) AS id
        UNION SELECT id FROM aggregator.judged_later WHERE resource = '{resource}'"
    )
}

/// The ids that touched rows decide: of the discrepancies that there are, and of those that there
/// should be. Most rows break no rule and did not, and are looked at no further.
fn touched() -> String {
    let looked_for = LOOKED_FOR.iter().enumerate().map(|(place, name)| {
        let rows = put_aside(&format!("${}", 2 + JUDGED.len() + place), &turned(name));
        format!("turned_{name} AS ({rows})")
    });
    let judged = JUDGED
        .iter()
        .map(|name| format!("touched_{name} AS ({})", touched_of(name)));
    let found = RULES.iter().map(|rule| {
        format!(
            "SELECT t.id * 100 + {number} AS id FROM touched_{resource} AS t
            CROSS JOIN LATERAL (SELECT FROM ({broken}) AS b WHERE b.key = t.id OFFSET 0) AS b",
            number = rule.number,
            resource = rule.resource,
            broken = broken(rule),
        )
    });
    let open = JUDGED.iter().map(|name| {
        format!(
            "SELECT d.id FROM touched_{name} AS t CROSS JOIN LATERAL (
                SELECT d.id FROM public.discrepancies AS d
                WHERE d.id BETWEEN t.id * 100 + 1 AND t.id * 100 + 99 OFFSET 0
            ) AS d"
        )
    });
    format!(
        "WITH {rows} {ids}",
        rows = join(looked_for.chain(judged)),
        ids = found.chain(open).collect::<Vec<_>>().join("\nUNION\n"),
    )
}

/// The statements for touched rows: what is due (orders, transactions), what breaks a rule
/// (revision, those of [`JUDGED`], those of [`LOOKED_FOR`]). The second returns by rule how many discrepancies
/// there are more then, or fewer.
pub(super) fn touched_sql(known: &Known) -> [String; 2] {
    let merge = DISCREPANCIES.touched_sql(known, &[], false);
    [
        PART_PAID.touched_sql(known, &[], false),
        format!(
            "WITH changed AS (
                {merge}
                RETURNING merge_action() AS action, coalesce(old.rule, new.rule) AS rule
            )
            SELECT rule, count(*) FILTER (WHERE action = 'INSERT')
                - count(*) FILTER (WHERE action = 'DELETE')
            FROM changed GROUP BY rule"
        ),
    ]
}

/// Compared with what they should be, like the unified tables.
pub(crate) fn compared() -> [&'static Resource; 2] {
    [&PART_PAID, &DISCREPANCIES]
}
