<!DOCTYPE html>
<title>k8s-nginx-php</title>
<h1>It works</h1>
<p>PHP <?= PHP_VERSION ?> on <?= htmlspecialchars(gethostname()) ?> says that 6 times 7 is <?= 6 * 7 ?>.</p>
