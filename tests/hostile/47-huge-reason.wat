;; Rejects the message with a reason of 10 MB.
(func $handle (param $m i32) (result i32)
  (drop (memory.grow (i32.const 160)))
  (memory.fill (i32.const 65536) (i32.const 65) (i32.const 10000000))
  (call $fail (i32.const 1) (i32.const 65536) (i32.const 10000000)))
