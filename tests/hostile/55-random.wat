;; 2 GiB of random bytes.
(import "wasi:random/random@0.2.3" "get-random-bytes" (func $random (param i64 i32)))
(func $handle (param $m i32) (result i32)
  (call $random (i64.const 2147483648) (i32.const 3000)) (call $ok (i32.const 0)))
