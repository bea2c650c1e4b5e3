import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.io.Reader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.List;
import java.util.Properties;

/**
 * Debezium's engine into a consumer that throws events away: the benchmark's peer.
 *
 * Arguments: the engine's properties, where to report, a file to make once all events were seen,
 * how many those are, whether to note the time from the commit of each.
 */
public final class NullConsumer implements DebeziumEngine.ChangeConsumer<ChangeEvent<String, String>> {
    private static final String COMMITTED_US = ",\"ts_us\":";

    private final Path report;
    private final Path done;
    private final long wanted;
    private final boolean latencies;

    private long events;
    private long half;
    private long halfUs;
    private long lastUs;
    private final StringBuilder latenciesUs = new StringBuilder();

    private NullConsumer(Path report, Path done, long wanted, boolean latencies) {
        this.report = report;
        this.done = done;
        this.wanted = wanted;
        this.latencies = latencies;
    }

    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (Reader reader = Files.newBufferedReader(Path.of(arguments[0]))) {
            properties.load(reader);
        }
        NullConsumer consumer = new NullConsumer(
                Path.of(arguments[1]),
                Path.of(arguments[2]),
                Long.parseLong(arguments[3]),
                Boolean.parseBoolean(arguments[4]));
        DebeziumEngine<ChangeEvent<String, String>> engine = DebeziumEngine.create(Json.class)
                .using(properties)
                .notifying(consumer)
                .build();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            consumer.write();
            Runtime.getRuntime().halt(0);
        }));
        engine.run();
    }

    @Override
    public synchronized void handleBatch(
            List<ChangeEvent<String, String>> records,
            DebeziumEngine.RecordCommitter<ChangeEvent<String, String>> committer)
            throws InterruptedException {
        for (ChangeEvent<String, String> record : records) {
            if (latencies && record.value() != null) {
                note(record.value());
            }
            committer.markProcessed(record);
        }
        committer.markBatchFinished();
        events += records.size();
        lastUs = nowUs();
        if (half == 0 && events >= wanted / 2) {
            half = events;
            halfUs = lastUs;
        }
        if (events >= wanted && !Files.exists(done)) {
            try {
                Files.createFile(done);
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        }
    }

    /** The time of the commit stands before the event's own. */
    private void note(String event) {
        int at = event.indexOf(COMMITTED_US) + COMMITTED_US.length();
        int end = at;
        while (Character.isDigit(event.charAt(end))) {
            end++;
        }
        latenciesUs.append(latenciesUs.length() == 0 ? "" : ",")
                .append(nowUs() - Long.parseLong(event.substring(at, end)));
    }

    private static long nowUs() {
        return ChronoUnit.MICROS.between(Instant.EPOCH, Instant.now());
    }

    private synchronized void write() {
        String text = String.format(
                "{\"events\":%d,\"half\":%d,\"half_us\":%d,\"last_us\":%d,\"latencies_us\":[%s]}",
                events, half, halfUs, lastUs, latenciesUs);
        try {
            Files.writeString(report, text);
        } catch (java.io.IOException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }
}
