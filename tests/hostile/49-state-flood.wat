;; Writes state without an end. What is not offered cannot be asked: the import is refused, and nothing behind it matters.
(component
  (import "cofferdam:plugin/state@0.1.0" (instance $state (export "set" (func (param "key" string) (param "value" (list u8))))))
  (core module $m (func (export "handle")))
  (core instance $i (instantiate $m))
  (func $handle (canon lift (core func $i "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "cofferdam:plugin/handler@0.1.0" (instance $handler)))
