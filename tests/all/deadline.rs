use cofferdam_tests::{Place, Redis, guest, publish, wait_until};

#[tokio::test]
async fn a_handler_that_loops_for_ever_is_stopped_soon_after_its_deadline_while_its_neighbours_go_on() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 0\n[limits]\ndeadline = \"300ms\"\n");
    let good = "name = \"good\"\nsubscribe = [\"stream:good_in\"]\nemit = [\"stream:good_out\"]\nstart = \"oldest\"\n";
    place.put("good", &guest("test/actor.wasm"), good);
    let _host = place.host(&redis, 1);
    wait_until("both are live", || redis.cli(&["XINFO", "GROUPS", "stream:good_in"]).contains("group:good"));
    publish(&redis, "stream:in", (0..12).map(|_| String::from(r#"{"do":"spin"}"#)));
    wait_until("the first one spins", || redis.cli(&["XPENDING", "stream:in", "group:actor"]).starts_with(['1', '2']));
    publish(
        &redis,
        "stream:good_in",
        (0..500).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"to":"stream:good_out"}}"#)),
    );
    wait_until("the neighbour is through", || redis.number(&["XLEN", "stream:good_out"]) == 500);
    assert!(redis.number(&["XLEN", "stream:dead_letter"]) < 12, "the neighbour waited until all loops had ended");
    wait_until("all loops have been stopped", || redis.number(&["XLEN", "stream:dead_letter"]) == 12);

    let letters = redis.store().await.dead_letters("-", "+", 100).await.unwrap();
    let mut over: Vec<u64> = letters
        .iter()
        .map(|letter| {
            assert_eq!(letter.code, "deadline");
            letter.attempts[0]["took_us"].as_u64().unwrap().saturating_sub(300_000)
        })
        .collect();
    over.sort_unstable();
    println!("stopped after the deadline of 300 ms by, in µs: {over:?}");
    // The median: on a busy machine the kernel may keep any one thread from the processor for longer.
    assert!(over[over.len() / 2] <= 20_000, "{over:?} µs past the deadline");
}
